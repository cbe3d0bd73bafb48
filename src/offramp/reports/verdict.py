"""Is early exit worth it for this network, data and machine? A run against smaller networks of the same time."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from offramp import trust
from offramp.backbones.prefix import shortened
from offramp.config import Spec
from offramp.costs import Cost, cost
from offramp.data import Parts
from offramp.devices import device_named
from offramp.errors import UsageError
from offramp.evaluation import Record, policy_for, recorded
from offramp.network import EarlyExitNet
from offramp.policy import Policy
from offramp.reports import figures
from offramp.reports.bench import LEAST_ROUNDS, MAX_DROP, ROUNDS, TUNED_ON
from offramp.reports.durations import duration_in_words
from offramp.reports.loading import (
    Bars,
    Progress,
    check_trained_on,
    given_policy,
    held_out,
    named,
    network_of,
    parts_of,
)
from offramp.reports.sample import pool
from offramp.reports.verdict_comparison import at_equal_time, frontier
from offramp.reports.verdict_conclusion import conclude
from offramp.reports.verdict_figures import Contender, Verdict
from offramp.reports.verdict_page import verdict_page
from offramp.reports.verdict_prefixes import Prefixes
from offramp.reports.verdict_timing import Early, Single, feeds_of, left_out, policies_for, rough_ms, timed
from offramp.runs import RunFolder
from offramp.runtime import Engine, usual_forms
from offramp.runtime.program import Backend
from offramp.runtime.timing import conditions
from offramp.storage import write_atomically
from offramp.writes import check_skippable

SECONDS = 60.0  # for tuning all engines
FIRST = 0.4  # the first one's share of them: forms are tried with it alone

Note = Callable[[str], None]


@dataclass(frozen=True)
class VerdictOptions:
    """How times are taken: the arguments of `verdict` by these names."""

    batch_size: int
    images: int | None
    rounds: int
    seconds: float
    backend: Backend | Literal["auto"]
    note: Note


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the run's network before anything is timed."""

    network: EarlyExitNet
    parts: Parts
    costs: Cost
    search: Record
    test: Record


class Timed(NamedTuple):
    """What was timed."""

    contenders: list[Contender]
    form: str
    wrong: int
    images: int
    left_out: tuple[str, ...]


def verdict(
    run: str | Path,
    *,
    policy: Policy | str | Path | None = None,
    exits: Sequence[int] | None = None,
    train: bool = True,
    runs: str | Path | None = None,
    seeds: int = 1,
    batch_size: int = 1,
    images: int | None = None,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    least_gain: float = 0.0,
    backend: Backend | Literal["auto"] = "auto",
    parts: Parts | None = None,
    into: EarlyExitNet | None = None,
    root: str | None = None,
    allow_code: Sequence[str] = (),
    device: str = "auto",
    bars: Bars = contextlib.nullcontext,
    note: Note = lambda text: None,
) -> Verdict:
    """Compare early exits with the best single smaller network that takes the same time per image.

    Smaller networks are this one cut at each exit, and networks of the same shape trained with that exit alone; these
    are trained first, into runs of their own: what is finished is not trained again, what was interrupted goes on. All
    are run in their fastest form without computing what they do not need, and take turns with the engine on the same
    test images. Thresholds are found, and rivals chosen, on `search`. Written are `verdict.json` and, where matplotlib
    is installed, `verdict.html` in the run's folder.

    Args:
        run: Folder of a finished run that held images out.
        policy: Also compare this policy (or its file); by default the run's `policy.json`, or one found on `search`
            that loses 0.2 points. For the time of each exit a policy is found on `search` in any case.
        exits: Exits (from 1) whose smaller network is trained if it is not there yet; all by default.
        train: Whether to train at all. What is missing is said.
        runs: Folder of the smaller networks' runs, by default `verdict` in the run's folder.
        seeds: How many times each of them is trained, from the run's seed on; their mean stands against the one
            training that the run is.
        batch_size: Images answered at a time.
        images: Images timed in a round, at most (but a whole batch); by default 100 one at a time, 256 in batches.
        rounds: How many times each contender takes its turn.
        seconds: About how long engines are tuned, all together.
        least_gain: Percentage points that early exits have to gain to be worth it.
        backend: What may run engine and smaller networks: torch, onnxruntime, openvino; auto tries all that are
            installed. Files for the latter two are made once for each network, which takes seconds to a minute.
        parts: The data, for a run that was fit from Python with data made by hand.
        into: A network of the same make, for one that was built by hand.
        root: Folder that holds the data set's files, if it is not where it was in training.
        allow_code: Packages whose code the run may name: see `offramp.load`.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.
        bars: Shows progress while data sets are read; closed before anything is timed.
        note: Hears in words what is being done.

    Raises:
        UsageError: A network with one exit, an exit that writes into a map that a later part reads, a run without
            held-out images, settings that cannot be, other data, a policy for another network, a folder of smaller
            networks that holds something else.
        OfframpError: A file that cannot be written, a training that fails.
    """
    _check(seeds, batch_size, images, rounds, seconds, least_gain)
    measured_on = conditions(device_named(device))  # before the machine is busy with us
    folder = RunFolder(run, allow_code)
    config = folder.read_config()
    _check_code(folder, config)
    network = network_of(folder, into, device, "the verdict is written there")
    parts = parts or parts_of(folder, config, root, "offramp.reports.verdict")
    check_trained_on(parts, folder, config)
    wanted = _exits(network, exits, folder, parts)
    ready, file = given_policy(policy, folder)
    if ready is not None:
        Engine(network, ready)  # refuses a policy for another network
    check_skippable(network, parts.test.image_shape)
    costs = cost(network, parts.test.image_shape)  # before anything is trained: what cannot be counted fails here
    where = folder.verdict_runs if runs is None else Path(runs).expanduser()
    prefixes = Prefixes(folder, network, config, parts, where)
    many = range(prefixes.seed, prefixes.seed + seeds)
    if train:
        _train(prefixes, [(exit, seed) for exit in wanted for seed in many], note)
    with bars() as progress:
        (search,) = held_out(folder, network, parts, ("search",), batch_size=None, progress=progress)
        test = recorded(network, parts.test, folder.record("test"), progress=named(progress, "test"))
        alone = _alone(prefixes, network, parts, many, progress)
    options = VerdictOptions(batch_size, images, rounds, seconds, backend, note)
    measured = _measured(Known(network, parts, costs, search, test), ready, file, alone, options)
    engines = [one for one in measured.contenders if one.kind == "engine"]
    rivals = [one for one in measured.contenders if one.kind != "engine"]
    comparisons = at_equal_time(engines, rivals)
    found = Verdict(
        run=folder,
        conclusion=conclude(comparisons, rivals, test.num_images, least_gain=least_gain),
        comparisons=comparisons,
        contenders=tuple(measured.contenders),
        frontier=tuple(one.name for one in frontier(rivals)),
        missing=tuple(k for k in range(1, network.num_exits + 1) if k not in {one.exit for one in alone}),
        least_gain=least_gain,
        batch_size=batch_size,
        timed=measured.images,
        test=test.split,
        fingerprint=test.fingerprint,
        images=test.num_images,
        searched=search.num_images,
        weights=test.weights,
        device=measured_on["device"],
        conditions=measured_on,
        form=measured.form,
        trained=prefixes.words() if alone else (),
        wrong=measured.wrong,
        left_out=measured.left_out,
    )
    return _written(found)


def _check_code(folder: RunFolder, config: dict[str, Any]) -> None:
    """Refuse names that the run may not have called, before anything is read: a verdict comes to them late."""
    with folder.naming(config):
        for kind in ("objective", "rule"):
            name = Spec.from_json(config[kind]).name if config.get(kind) is not None else ""
            if ":" in name:
                trust.check(name, kind)


def _check(seeds: int, batch_size: int, images: int | None, rounds: int, seconds: float, least_gain: float) -> None:
    for name, value, least in (
        ("seeds", seeds, 1),
        ("batch-size", batch_size, 1),
        ("images", images, 1),
        ("rounds", rounds, LEAST_ROUNDS),
        ("least-gain", least_gain, 0),
    ):
        if value is not None and not value >= least:
            raise UsageError(f"{name} must be at least {least}, not {value}.")
    if not seconds > 0:
        raise UsageError(f"seconds must be above 0, not {seconds!r}.")


def _exits(network: EarlyExitNet, exits: Sequence[int] | None, folder: RunFolder, parts: Parts) -> tuple[int, ...]:
    """The exits asked for; a run of which nothing can be said is refused before anything is trained."""
    last = network.num_exits
    if last == 1:
        raise UsageError(f"The network of {folder.path} has one exit, so no image can leave early.")
    if not parts.val.splits():
        raise UsageError(
            f"Thresholds are found and rivals chosen on held-out images, and {folder.path} held none out (holdout=0): "
            "train with a holdout."
        )
    wanted = tuple(range(1, last + 1)) if exits is None else tuple(sorted(set(exits)))
    for exit in wanted:
        if not 1 <= exit <= last:
            raise UsageError(f"exits are numbered from 1 to {last}; there is no {exit}.")
    return wanted


def _train(prefixes: Prefixes, jobs: Sequence[tuple[int, int]], note: Note) -> None:
    """Train what is not finished, having said what and about how long."""
    missing = [job for job in jobs if prefixes.finished(*job) is None]
    if not missing:
        return
    exits = ", ".join(str(exit) for exit in dict.fromkeys(exit for exit, _ in missing))
    about = duration_in_words(prefixes.seconds(missing))
    many = f"{len(missing)} smaller network{'s' if len(missing) > 1 else ''}"
    note(
        f"Training {many} (up to exit {exits}) into {prefixes.runs}: about {about} here. Ctrl-C saves; the same "
        "command continues."
    )
    for exit, seed in missing:
        prefixes.train(exit, seed)


def _alone(
    prefixes: Prefixes, network: EarlyExitNet, parts: Parts, seeds: Sequence[int], progress: Progress | None
) -> list[Single]:
    """The networks trained with one exit that are there, with their logits: those of each exit with all seeds."""
    found = []
    for exit in range(1, network.num_exits + 1):
        trained = [(seed, prefixes.finished(exit, seed)) for seed in seeds]
        there = [(prefixes.folder(exit, seed), one) for seed, one in trained if one is not None]
        if len(there) < len(seeds):
            continue
        tests, searches = (
            [
                recorded(one, split, folder.record(part), progress=named(progress, f"exit {exit}, {part}"))
                for folder, one in there
            ]
            for part, split in (("test", parts.test), ("search", parts.val.search))
        )
        found.append(Single(f"exit {exit} trained alone", "alone", exit, [one for _, one in there], tests, searches))
    return found


def _cuts(known: Known) -> list[Single]:
    """The network cut at each exit: its own logits there."""
    network, last = known.network, known.network.num_exits

    def at(one: Record, exit: int) -> Record:
        return dataclasses.replace(one, logits_KSC=one.logits_KSC[exit - 1 : exit])

    return [
        Single(
            "the network straight to its last exit" if exit == last else f"the network cut at exit {exit}",
            "cut",
            exit,
            [shortened(network, exit)],
            [at(known.test, exit)],
            [at(known.search, exit)],
        )
        for exit in range(1, last + 1)
    ]


def _measured(
    known: Known, ready: Policy | None, file: Path | None, alone: Sequence[Single], options: VerdictOptions
) -> Timed:
    network, parts, costs = known.network, known.parts, known.costs
    first = ready or policy_for(known.search, costs, max_drop=MAX_DROP)
    about = f"found to lose at most {MAX_DROP:g} points" if ready is None else "given" if file is None else file.name
    engine = Engine(network, first)
    options.note(f"Tuning the engine on images of {parts.val.search.name}.")
    images_SCHW = pool(parts.val.search, max(TUNED_ON, options.batch_size)).images_SCHW
    forms = usual_forms(engine.program.device, backend=options.backend)
    sizes = (options.batch_size,)
    tuning = engine.tune(images_SCHW, batch_sizes=sizes, forms=forms, seconds=FIRST * options.seconds, streams=False)
    forms = (tuning.form, *(t.form for t in tuning.forms if t.admitted and t.form != tuning.form))
    feeds = feeds_of(parts.test, options.batch_size, options.images, options.rounds)
    cuts = _cuts(known)
    tried = [(one, one.fastest(feeds[0], forms, engine.program.device)) for one in (*cuts, *alone)]
    ways = [(one, way.straight) for one, way in tried]
    rough = rough_ms([way for _, way in ways[: len(cuts)]], feeds[0], engine.wait)
    targets = {f"for the time of exit {k}": ms for k, ms in enumerate(rough, 1) if k > 1}
    exit_ms = tuning.exit_ms[str(options.batch_size)]
    found = policies_for(targets, exit_ms, known.search, costs, first.measure)
    found = {name: policy for name, policy in found.items() if policy.thresholds != first.thresholds}
    early = [Early(f"early exits, {about}", engine)]
    for name, policy in found.items():
        options.note(f"Tuning the engine {name}.")
        other = Engine(network, policy)
        share = (1 - FIRST) * options.seconds / len(found)
        other.tune(images_SCHW, batch_sizes=sizes, forms=[tuning.form], seconds=share, streams=False)
        early.append(Early(f"early exits {name}", other))
    options.note(f"Timing {len(early) + len(ways)} contenders in turns.")
    contenders, wrong = timed(early, ways, feeds, options.rounds, known.test, known.search)
    return Timed(contenders, str(tuning.form), wrong, feeds[0].images, left_out(tuning.forms, tried))


def _written(found: Verdict) -> Verdict:
    files = {found.run.verdict: (json.dumps(found.to_json(), indent=1) + "\n").encode()}
    if figures.available():
        files[found.run.verdict_page] = verdict_page(found).encode()
    for path, content in files.items():
        write_atomically(path, content)
    return dataclasses.replace(found, written=tuple(files))
