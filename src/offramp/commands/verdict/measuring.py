"""Early exits and smaller networks: trained, set up, timed in turns."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from offramp.backbones.prefix import shortened
from offramp.commands.bench import MAX_DROP
from offramp.commands.bench.measuring import TUNED_ON
from offramp.commands.open_run import OpenRun, named
from offramp.commands.sample import pool
from offramp.commands.verdict import VerdictOptions
from offramp.commands.verdict.prefixes import Prefixes
from offramp.commands.verdict.timing import Early, Single, feeds_of, left_out, policies_for, rough_ms, timed
from offramp.data import Parts
from offramp.evaluation import Record, policy_for, recorded
from offramp.network import EarlyExitNet
from offramp.policy import Policy
from offramp.results.verdict.values import Contender
from offramp.runtime import Engine, usual_forms
from offramp.show.durations import duration_in_words
from offramp.show.watch import Progress, Watch

FIRST = 0.4  # the first engine's share of the seconds for tuning: forms are tried with it alone


class Timed(NamedTuple):
    """What was timed."""

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


def trained_alone(
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


def measured(
    run: OpenRun,
    test: Record,
    search: Record,
    ready: Policy | None,
    file: Path | None,
    alone: Sequence[Single],
    options: VerdictOptions,
    watch: Watch,
) -> Timed:
    """All contenders, timed; `ready` is the policy asked for or the run's own, read from `file`."""
    network, parts, costs = run.network, run.parts, run.cost
    first = ready or policy_for(search, costs, max_drop=MAX_DROP)
    about = f"found to lose at most {MAX_DROP:g} points" if ready is None else "given" if file is None else file.name
    engine = Engine(network, first)
    watch.note(f"Tuning the engine on images of {parts.val.search.name}.")
    images_SCHW = pool(parts.val.search, max(TUNED_ON, options.batch_size)).images_SCHW
    forms = usual_forms(engine.program.device, backend=options.backend)
    sizes = (options.batch_size,)
    tuning = engine.tune(images_SCHW, batch_sizes=sizes, forms=forms, seconds=FIRST * options.seconds, streams=False)
    forms = (tuning.form, *(t.form for t in tuning.forms if t.admitted and t.form != tuning.form))
    feeds = feeds_of(parts.test, options.batch_size, options.images, options.rounds)
    cuts = _cuts(run, test, search)
    tried = [(one, one.fastest(feeds[0], forms, engine.program.device)) for one in (*cuts, *alone)]
    ways = [(one, way.straight) for one, way in tried]
    rough = rough_ms([way for _, way in ways[: len(cuts)]], feeds[0], engine.wait)
    targets = {f"for the time of exit {k}": ms for k, ms in enumerate(rough, 1) if k > 1}
    exit_ms = tuning.exit_ms[str(options.batch_size)]
    found = policies_for(targets, exit_ms, search, costs, first.measure)
    found = {name: policy for name, policy in found.items() if policy.thresholds != first.thresholds}
    early = [Early(f"early exits, {about}", engine)]
    for name, policy in found.items():
        watch.note(f"Tuning the engine {name}.")
        other = Engine(network, policy)
        share = (1 - FIRST) * options.seconds / len(found)
        other.tune(images_SCHW, batch_sizes=sizes, forms=[tuning.form], seconds=share, streams=False)
        early.append(Early(f"early exits {name}", other))
    watch.note(f"Timing {len(early) + len(ways)} contenders in turns.")
    contenders, wrong = timed(early, ways, feeds, options.rounds, test, search)
    return Timed(contenders, str(tuning.form), wrong, feeds[0].images, left_out(tuning.forms, tried))


def _cuts(run: OpenRun, test: Record, search: Record) -> list[Single]:
    """The network cut at each exit: its own logits there."""
    network, last = run.network, run.network.num_exits

    def at(one: Record, exit: int) -> Record:
        return dataclasses.replace(one, logits_KSC=one.logits_KSC[exit - 1 : exit])

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
