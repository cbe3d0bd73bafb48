"""What a run is called: a hash of its configuration, a readable name, and the command that trains it by hand."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from offramp.config import FormName, Run, Spec, determining, to_json
from offramp.paper.watching import plain

_GROUPS = ("data", "training")  # the parts of a run that have fields of their own


def second_stage(run: Run, first: str | Path) -> Run:
    """The run, with the exits of a finished run's network trained anew as a chain, and that run as teacher (IMTA)."""
    return replace(
        run,
        network=Spec("collaborating", {"run": str(first)}),
        rule=Spec("one-for-all", {**run.rule.args, "teacher": str(first)}),
    )


def first_stage(run: Run) -> Path | None:
    """The folder of the run that a second stage begins with, or its name alone; None where it begins with none."""
    return Path(run.network.args["run"]) if run.network.name == "collaborating" else None


def in_form(run: Run, form: FormName) -> Run:
    """The same run, trained in this form (`TrainConfig.form`)."""
    return replace(run, training=replace(run.training, form=form))


def configuration(run: Run) -> dict[str, Any]:
    """What determines the run, as JSON values.

    Of the run that it begins with the name, wherever its folder lies: it has that run's hash in it. The form of
    training is no part of it, as the number of threads is none: both change how numbers are rounded.
    """
    first = first_stage(run)
    return determining(to_json(in_form(run if first is None else second_stage(run, first.name), "auto")))


def run_hash(run: Run) -> str:
    """Twelve hexadecimal digits of what differs from the defaults: a field that offramp gains later changes none."""
    text = json.dumps(_different(configuration(run), configuration(Run())), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _different(value: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: _different(item, default[key]) if key in _GROUPS else item for key, item in value.items()}
    return {key: item for key, item in kept.items() if key in _GROUPS or item != default[key]}


def run_name(run: Run) -> str:
    """A folder's name: data, network, method, seed, hash."""
    words = [plain(run.data).source.name, run.network.name]
    words += ["last"] if run.network.args.get("last_only") else []
    words += [run.rule.name] if run.rule.name != "standard" else []
    if run.objective.name != "cross-entropy" or run.rule.name == "standard":
        words.append(run.objective.name)
        words += [f"{value:g}" for value in run.objective.args.values() if type(value) in (int, float)]
    text = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")
    return f"{text}-seed{run.training.seed}-{run_hash(run)}"


def command(run: Run, out: str) -> str:
    """The line that trains the run by hand: what is not said is the default. A run that it begins with lies beside."""
    first = first_stage(run)
    if first is not None:
        run = second_stage(run, Path(out).parent / first.name)
    words = ["offramp", "train"]
    default = Run()
    for name in ("network", "objective", "rule"):
        value: Spec = getattr(run, name)
        if value != getattr(default, name):
            words += [f"--{name}", *_words(value)]
    for group in _GROUPS:
        config, usual = getattr(run, group), getattr(default, group)
        for field in fields(config):
            value = getattr(config, field.name)
            if field.metadata.get("free") or value == getattr(usual, field.name):
                continue
            words += _option("data" if field.name == "source" else field.name.replace("_", "-"), value)
    return shlex.join([*words, "--out", out])


def _words(spec: Spec) -> list[str]:
    """`Spec.words` without quotes around strings that need none: they would have to be quoted for the shell again."""
    plain_words = [f"{key}={value}" for key, value in spec.args.items()]
    return [spec.name, *plain_words] if Spec.parse([spec.name, *plain_words]) == spec else spec.words()


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, Spec):
        return [f"--{name}", *_words(value)]
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, (list, tuple)):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]
