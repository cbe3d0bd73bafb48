"""Early exits and smaller networks: trained, set up, timed in turns."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from offramp.backbones.prefix import shortened
from offramp.commands.bench import MAX_DROP
from offramp.commands.bench.measuring import TUNED_ON
from offramp.commands.open_run import OpenRun, named
from offramp.commands.options import AnyBackend
from offramp.commands.sample import pool
from offramp.commands.verdict.timing import Single, feeds_of, left_out, policies_for, rough_ms, timed
from offramp.evaluation import Record, policy_for, recorded
from offramp.policy import Policy
from offramp.results.bench import Conditions
from offramp.results.verdict.comparison import at_equal_time, frontier
from offramp.results.verdict.conclusion import conclude
from offramp.results.verdict.values import Contender, JudgedComparison, Verdict, VerdictImages
from offramp.runtime import Engine, usual_forms
from offramp.show.watch import Progress, Watch
from offramp.terminal import duration_in_words
from offramp.training.prefixes import Prefixes

FIRST = 0.4  # the first engine's share of the seconds for tuning: forms are tried with it alone


class Timing(NamedTuple):
    """How contenders are timed: as `VerdictOptions` says."""

    batch_size: int
    images: int | None
    rounds: int
    seconds: float
    backend: AnyBackend


class Timed(NamedTuple):
    """What was timed; `form` is the engine's, and `images` those of a round."""

    contenders: list[Contender]
    form: str
    wrong: int
    images: int
    left_out: tuple[str, ...]


def train(prefixes: Prefixes, jobs: Sequence[tuple[int, int]], note: Callable[[str], None]) -> None:
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


def trained_alone(prefixes: Prefixes, seeds: Sequence[int], progress: Progress | None) -> list[Single]:
    """The networks trained with one exit, with their logits: of those exits of which all seeds are finished."""
    singles = []
    for exit in range(1, prefixes.network.num_exits + 1):
        trained = [(seed, prefixes.finished(exit, seed)) for seed in seeds]
        finished = [(prefixes.folder(exit, seed), network) for seed, network in trained if network is not None]
        if len(finished) < len(seeds):
            continue
        tests, searches = (
            [
                recorded(network, split, folder.record(part), progress=named(progress, f"exit {exit}, {part}"))
                for folder, network in finished
            ]
            for part, split in (("test", prefixes.parts.test), ("search", prefixes.parts.val.search))
        )
        networks = [network for _, network in finished]
        singles.append(Single(f"exit {exit} trained alone", "alone", exit, networks, tests, searches))
    return singles


def measured(
    run: OpenRun,
    test: Record,
    search: Record,
    ready: Policy | None,
    file: Path | None,
    alone: Sequence[Single],
    timing: Timing,
    watch: Watch,
) -> Timed:
    """All contenders, timed; `ready` is the policy asked for or the run's own, read from `file`."""
    network, parts, costs = run.network, run.parts, run.cost
    first = ready or policy_for(search, costs, max_drop=MAX_DROP)
    about = f"found to lose at most {MAX_DROP:g} points" if ready is None else "given" if file is None else file.name
    engine = Engine(network, first)
    watch.note(f"Tuning the engine on images of {parts.val.search.name}.")
    images_SCHW = pool(parts.val.search, max(TUNED_ON, timing.batch_size)).images_SCHW
    forms = usual_forms(engine.program.device, backend=timing.backend)
    sizes = (timing.batch_size,)
    tuning = engine.tune(images_SCHW, batch_sizes=sizes, forms=forms, seconds=FIRST * timing.seconds, streams=False)
    forms = (tuning.form, *(t.form for t in tuning.forms if t.admitted and t.form != tuning.form))
    feeds = feeds_of(parts.test, timing.batch_size, timing.images, timing.rounds)
    cuts = _cuts(run, test, search)
    tried = [(single, single.fastest(feeds[0], forms, engine.program.device)) for single in (*cuts, *alone)]
    ways = [(single, way.straight) for single, way in tried]
    rough = rough_ms([way for _, way in ways[: len(cuts)]], feeds[0], engine.wait)
    targets = {f"for the time of exit {k}": ms for k, ms in enumerate(rough, 1) if k > 1}
    exit_ms = tuning.exit_ms[str(timing.batch_size)]
    policies = policies_for(targets, exit_ms, search, costs, first.measure)
    policies = {name: policy for name, policy in policies.items() if policy.thresholds != first.thresholds}
    early = {f"early exits, {about}": engine}
    for name, policy in policies.items():
        watch.note(f"Tuning the engine {name}.")
        other = early[f"early exits {name}"] = Engine(network, policy)
        share = (1 - FIRST) * timing.seconds / len(policies)
        other.tune(images_SCHW, batch_sizes=sizes, forms=[tuning.form], seconds=share, streams=False)
    watch.note(f"Timing {len(early) + len(ways)} contenders in turns.")
    contenders, wrong = timed(early, ways, feeds, timing.rounds, test, search)
    return Timed(contenders, str(tuning.form), wrong, feeds[0].images, left_out(tuning.forms, tried))


def _cuts(run: OpenRun, test: Record, search: Record) -> list[Single]:
    """The network cut at each exit: its own logits there."""
    network, last = run.network, run.network.num_exits

    def at(record: Record, exit: int) -> Record:
        return dataclasses.replace(record, logits_KSC=record.logits_KSC[exit - 1 : exit])

    return [
        Single(
            "the network straight to its last exit" if exit == last else f"the network cut at exit {exit}",
            "cut",
            exit,
            [shortened(network, exit)],
            [at(test, exit)],
            [at(search, exit)],
        )
        for exit in range(1, last + 1)
    ]


def judged(
    prefixes: Prefixes,
    test: Record,
    search: Record,
    alone: Sequence[Single],
    timed: Timed,
    batch_size: int,
    least_gain: float,
    conditions: Mapping[str, Any],
) -> Verdict:
    """What follows from what was timed; `conditions` are those of the machine before it was busy."""
    engines = [contender for contender in timed.contenders if contender.kind == "engine"]
    rivals = [contender for contender in timed.contenders if contender.kind != "engine"]
    comparisons = at_equal_time(engines, rivals)
    exits = {single.exit for single in alone}
    return Verdict(
        **vars(conclude(comparisons, rivals, test.num_images, least_gain=least_gain)),
        weights=test.weights,
        least_gain=least_gain,
        batch_size=batch_size,
        comparisons=tuple(JudgedComparison(**vars(each), answer=each.answer_for(least_gain)) for each in comparisons),
        contenders=tuple(contender.figures() for contender in timed.contenders),
        frontier=tuple(rival.name for rival in frontier(rivals)),
        missing=tuple(exit for exit in range(1, prefixes.network.num_exits + 1) if exit not in exits),
        data=VerdictImages(test.split, test.fingerprint, test.num_images, search.num_images, timed.images),
        conditions=Conditions(**conditions),
        form=timed.form,
        trained=prefixes.description() if alone else (),
        wrong=timed.wrong,
        left_out=timed.left_out,
    )
