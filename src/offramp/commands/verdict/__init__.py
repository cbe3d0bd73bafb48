"""`offramp verdict`: is early exit worth it for this network, data and machine?"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

from offramp import trust
from offramp.checks import ABOVE_0, SIZE, whole
from offramp.commands.bench import LEAST_ROUNDS, ROUNDS
from offramp.commands.options import AnyBackend, ByHand, File, Flag, Folder, OnDevice, in_threads
from offramp.config import unset
from offramp.errors import UsageError
from offramp.files import CARD, RunConfig, RunFolder
from offramp.json_files import encoded
from offramp.shipped import Card
from offramp.show.terminal import IN_TERMINAL, print_result
from offramp.show.watch import QUIET, Watch
from offramp.storage import write_files

if TYPE_CHECKING:
    from offramp.commands.open_run import OpenRun
    from offramp.policy import Policy
    from offramp.results.verdict.values import Verdict


@dataclass(frozen=True, kw_only=True)
class VerdictOptions(OnDevice):
    """Say whether early exits beat a smaller network of the same time.

    The engine against the best single smaller network that takes the same time per image.

    Smaller networks are this one cut at each exit, and networks up to each exit trained with that exit alone, as the
    run was trained: runs of their own, trained first, continued where they were interrupted. Says yes, no or not
    resolved, from intervals over test images and rounds of timing. Writes RUN/verdict.json and RUN/verdict.html. Let
    nothing else run meanwhile.
    """

    policy: File = None
    """Compare this policy too. Default: RUN/policy.json, or one found to lose at most 0.2 points.
    For the time of each exit a policy is found anyway."""
    exits: Annotated[tuple[int, ...] | None, unset("K ...")] = None
    """Train the smaller networks of these exits only, from 1; by default of all."""
    no_train: Flag = False
    """Train nothing: compare with what is there. The page says what is missing."""
    runs: Folder = None
    """Folder of the smaller networks' runs. Default: RUN/verdict."""
    seeds: Annotated[int, whole(1)] = 1
    """Train each smaller network so many times, from the run's seed on, and take the mean.
    The run itself stays one training."""
    batch_size: Annotated[int, whole(1)] = 1
    """Images answered at a time."""
    images: Annotated[int | None, whole(1), unset("INT")] = None
    """Images timed in a round, at most. Default: 100 one at a time, 256 in batches."""
    rounds: Annotated[int, whole(LEAST_ROUNDS)] = ROUNDS
    """How many times each contender takes its turn, at least 5."""
    seconds: Annotated[float, ABOVE_0] = 60.0
    """About how long engines are tuned, all together."""
    least_gain: Annotated[float, SIZE] = 0.0
    """Percentage points that early exits have to gain to be worth it."""
    backend: AnyBackend = "auto"
    """What may run the networks; auto tries all that are installed."""

    def main(self) -> None:
        judged = verdict(self, watch=IN_TERMINAL)
        from offramp.show.figures import note_missing
        from offramp.show.verdict.table import verdict_table

        print_result(judged.to_json, lambda: verdict_table(judged), judged.written, as_json=self.json)
        note_missing("verdict.html")


@in_threads
def verdict(
    options: VerdictOptions, *, policy: "Policy | None" = None, watch: Watch = QUIET, **by_hand: Unpack[ByHand]
) -> "Verdict":
    """Compare early exits with the best single smaller network that takes the same time per image.

    Smaller networks are this one cut at each exit, and networks of the same shape trained with that exit alone; these
    are trained first, into runs of their own: what is finished is not trained again, what was interrupted goes on. All
    are run in their fastest form without computing what they do not need, and take turns with the engine on the same
    test images. Thresholds are found, and rivals chosen, on `search`. Written are `verdict.json` and, where matplotlib
    is installed, `verdict.html` in the run's folder. An exit that writes into a map that a later part reads, and a
    folder of smaller networks that holds something else are refused.
    """
    from offramp.commands.open_run import OpenRun
    from offramp.commands.policy_files import given_policy
    from offramp.commands.verdict.measuring import Timing, judged, measured, train, trained_alone
    from offramp.devices import device_named
    from offramp.runtime import Engine
    from offramp.runtime.timing import conditions
    from offramp.show import figures
    from offramp.show.verdict.page import verdict_page
    from offramp.training.prefixes import Prefixes

    measured_on = conditions(device_named(options.device))  # before the machine is busy with us
    folder = RunFolder(options.run, options.allow_code)
    _check_code(folder, folder.read_config())
    if not options.no_train:
        _check_data(folder)
    run = OpenRun(options, **by_hand)
    run.check_thresholds()
    ready, file = given_policy(policy or options.policy, run.folder)
    exits = _exits(run, options.exits)
    runs = run.folder.verdict_runs if options.runs is None else Path(options.runs).expanduser()
    prefixes = Prefixes(run.folder, run.network, run.config, run.parts, runs)
    if ready is not None:
        Engine(run.network, ready)  # refuses a policy for another network
    prefixes.check_network()
    _ = run.cost  # before anything is trained: what cannot be counted fails here
    seeds = range(prefixes.seed, prefixes.seed + options.seeds)
    if not options.no_train:
        train(prefixes, [(exit, seed) for exit in exits for seed in seeds], watch.note)
    with watch.bars() as progress:
        (search,) = run.held_out("search", progress=progress)
        test = run.record(run.parts.test, "test", progress)
        alone = trained_alone(prefixes, seeds, progress)
    timing = Timing(options.batch_size, options.images, options.rounds, options.seconds, options.backend)
    timed = measured(run, test, search, ready, file, alone, timing, watch)
    result = judged(prefixes, test, search, alone, timed, options.batch_size, options.least_gain, measured_on)
    page = {run.folder.verdict_page: verdict_page(result, run.folder.path.name).encode()} if figures.available() else {}
    return dataclasses.replace(result, written=write_files({run.folder.verdict: encoded(result.to_json()), **page}))


def _check_code(folder: RunFolder, config: RunConfig) -> None:
    """Refuse names that the run may not have called, before anything is read: a verdict comes to them late."""
    with folder.naming(config):
        for kind, spec in {"objective": config.objective, "rule": config.rule}.items():
            if spec is not None and ":" in spec.name:
                trust.check(spec.name, kind)


def _check_data(folder: RunFolder) -> None:
    """Refuse a shipped network that was trained on more than the data set that ships with it."""
    if not (folder.path / CARD).is_file():
        return
    card = Card.of(folder.path)
    if card.at_hand is not None:
        raise UsageError(
            f"{folder.path} was trained on {card.division['train']:,} images, of which {card.at_hand} has a part: "
            "smaller networks trained on that would be no fair rivals. --no-train compares with this network cut at "
            "its exits; or train a run of your own."
        )


def _exits(run: "OpenRun", exits: Sequence[int] | None) -> tuple[int, ...]:
    """The exits asked for."""
    last = run.network.num_exits
    wanted = tuple(range(1, last + 1)) if exits is None else tuple(sorted(set(exits)))
    for exit in wanted:
        if not 1 <= exit <= last:
            raise UsageError(f"exits are numbered from 1 to {last}; there is no {exit}.")
    return wanted
