"""`offramp demo`: a page that shows images leave early, as a folder for any static host."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from offramp.commands.options import Computes, File, Folder, OnRun, in_threads
from offramp.errors import OfframpError, UsageError
from offramp.terminal import escaped, say

if TYPE_CHECKING:
    from offramp.files import RunFolder
    from offramp.policy import Policy


@dataclass(frozen=True, kw_only=True)
class DemoOptions(OnRun, Computes):
    """Make a web page that runs the network in the browser, exit by exit.

    A folder for any static host: the page, the network as ONNX, and onnxruntime-web, which is downloaded once (33 MB).
    No server computes, and no image leaves the browser.
    """

    out: Annotated[str | Path, tyro.conf.arg(metavar="DIR")] = "site"
    """The folder to make."""
    policy: File = None
    """Thresholds, as offramp policy and offramp certify write them. Default: RUN/policy.json."""
    runtime: Folder = None
    """Folder with the files of onnxruntime-web (its dist), instead of a download."""

    def main(self) -> None:
        """See `Options.main`."""
        made = demo(self)
        if self.json:
            print(dumps({"written": str(made.written), "bytes": made.bytes, "samples": made.samples}))
            return
        print(escaped(made.written))
        say(f"{made.bytes / 1e6:.1f} MB, for any static host. Here: python -m http.server --directory {made.written}")


@dataclass(frozen=True)
class Demo:
    """A folder that was made: where, how large, and with how many images to try."""

    written: Path
    bytes: int
    samples: int


@in_threads
def demo(options: DemoOptions) -> Demo:
    """Make the folder, whole or not at all: `index.html`, `model.json`, a file for each stage, samples, the runtime.

    Raises:
        UsageError: No run or an unfinished one; no policy, or one for another network; a folder that is not empty;
            what the room `export` refuses; a runtime that is not whole.
        OfframpError: The runtime cannot be downloaded, the folder not written.
    """
    from offramp.commands.open_run import inputs_of
    from offramp.costs import cost
    from offramp.export.levels import levels
    from offramp.export.stage_files import check_policy
    from offramp.export.tracing import need_onnx, parts
    from offramp.files import RunFolder, load
    from offramp.serve.page import page
    from offramp.serve.samples import samples
    from offramp.serve.web_runtime import web_runtime
    from offramp.storage import held_folder, sync_folder

    target = Path(options.out).expanduser()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(
            f"{target} is there already; remove it, or choose a folder that does not exist yet with --out."
        )
    folder = RunFolder(options.run, options.allow_code)
    config = folder.read_config()
    network = load(folder.path, allow_code=options.allow_code)
    ladder = _ladder(options.policy, folder)
    for policy in ladder:
        check_policy(network, policy)
    inputs = inputs_of(folder, config, options.root)
    inputs.check_network(network, folder.path)
    need_onnx()
    runtime = web_runtime(options.runtime)
    split = parts(network, inputs.image_shape)
    stages = [
        model.SerializeToString(deterministic=True) for model in levels(split, network, ladder[0].measure, inputs)
    ]
    names = [f"stage-{k}.onnx" for k in range(1, len(stages) + 1)]
    shown = samples(folder.path, inputs.class_names)
    addresses = [f"samples/{number}{sample.path.suffix.lower()}" for number, sample in enumerate(shown)]
    operations = [count.operations for count in cost(network, inputs.image_shape).exits]
    model = {
        "name": folder.path.name,
        **_described(folder, ladder),
        "class_names": inputs.class_names,
        "exits": network.num_exits,
        "image_shape": inputs.image_shape,
        "operations": [spent / max(operations[-1], 1) for spent in operations],
        "stages": [{"file": name, "bytes": len(content)} for name, content in zip(names, stages, strict=True)],
        "samples": [{"url": url, "label": one.label} for url, one in zip(addresses, shown, strict=True)],
    }
    files = {
        "index.html": page("local").encode(),
        "model.json": dumps(model, ensure_ascii=False).encode(),
        **dict(zip(names, stages, strict=True)),
        **{url: one.path.read_bytes() for url, one in zip(addresses, shown, strict=True)},
        **{f"runtime/{name}": content for name, content in runtime.items()},
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with held_folder(target.parent, target.name) as beside:
            new = beside / "new"
            for name, content in files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(content)
            os.replace(new, target)
        sync_folder(target.parent)
    except OSError as error:
        raise OfframpError(f"{target} cannot be written: {error.strerror or error}.") from error
    return Demo(target, sum(map(len, files.values())), len(shown))


def _ladder(policy: str | Path | None, folder: "RunFolder") -> "Sequence[Policy]":
    """The policies that the page can move along: one."""
    from offramp.commands.policy_files import given_policy

    found, _ = given_policy(policy, folder)
    if found is None:
        raise UsageError(
            f"{folder.path} has no policy.json, and the page has to know who leaves where: "
            f"`{folder.command('policy')}` or `{folder.command('certify')}` finds thresholds, --policy FILE gives some."
        )
    return [found]


def _described(folder: "RunFolder", ladder: "Sequence[Policy]") -> dict[str, Any]:
    """What is known of a run and its policies: as `GET /v1/model` of a server has it."""
    import hashlib

    from offramp.evaluation import Certificate
    from offramp.files import read
    from offramp.policy import NOBODY
    from offramp.results.evaluation import EvaluationFile

    certificates = [Certificate.of(policy) for policy in ladder]
    evaluation = read(folder.evaluation, EvaluationFile) if folder.evaluation.is_file() else None
    fingerprint = hashlib.sha256(" ".join(policy.fingerprint() for policy in ladder).encode()).hexdigest()
    return {
        "fingerprint": fingerprint,
        "measure": ladder[0].measure.name,
        "ladder": [
            {
                "rung": rung,
                "thresholds": [*(None if t == NOBODY else t for t in policy.thresholds[:-1]), None],
                "promise": None if certificate is None else str(certificate),
                "risk": None if certificate is None else certificate.promise.risk,
            }
            for rung, (policy, certificate) in enumerate(zip(ladder, certificates, strict=True), 1)
        ],
        "accuracies": None if evaluation is None else [exit.top1 for exit in evaluation.exits],
        "data": None if evaluation is None else evaluation.data,
        "certificate": None if certificates[0] is None else str(certificates[0]),
    }
