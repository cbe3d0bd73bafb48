"""`offramp policy`: thresholds of a finished run for a target."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Unpack

from offramp.choices import MeasureName
from offramp.commands.options import ByHand, File, Flag, RecordsLogits, in_threads, target
from offramp.config import unset
from offramp.errors import UsageError
from offramp.show.terminal import IN_TERMINAL, print_result
from offramp.show.watch import QUIET, Watch
from offramp.terminal import say

if TYPE_CHECKING:
    from offramp.policy import Measure
    from offramp.results.policy_use import PolicyUse

BATCH = "1"  # whose times are taken where none is named


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(RecordsLogits):
    """Find thresholds for a budget, a latency or an accuracy drop.

    Give one target: --budget, --max-drop or --latency. Thresholds are found on the search half of the held-out images;
    on other images a target is met on average, not surely: for a promise, use offramp certify. Writes RUN/policy.json.
    """

    budget: Annotated[float | None, unset("OPERATIONS")] = None
    """Expected operations per image; up to 1, as a share of the full network's."""
    max_drop: Annotated[float | None, unset("POINTS")] = None
    """Percentage points of accuracy that may be lost against the full network, at the lowest cost."""
    latency: Annotated[float | None, unset("MS")] = None
    """Expected milliseconds per image, by what offramp bench measured (RUN/bench.json)."""
    batch: Annotated[str | None, unset("INT")] = None
    """Batch size whose measured times count, or stream; 1 with --latency if not given.
    With --max-drop, cost is then counted in milliseconds, not in operations."""
    measure: MeasureName = "softmax"
    """How an exit's confidence is read off its logits."""
    temperature: Flag = False
    """Divide each exit's logits by a temperature, the one that fits the search half best."""
    renormalise: Flag = False
    """Confidences of classes that sum to 1, without the damping neuron."""
    out: File = None
    """Write the policy to FILE."""

    def main(self) -> None:
        use = find_policy(self, watch=IN_TERMINAL)
        from offramp.show.tables import exit_table

        if use.replaced:
            say(f"The policy in {use.written} had a certificate; this one replaces it and has none.")
        if use.better_exit is not None and self.max_drop is not None:
            say(
                f"Exit {use.better_exit} alone is right more often than the last one ({use.better_top1:.2f} "
                f"and {use.full_top1:.2f} % of the search images), and max-drop counts from the last: a budget does "
                "not."
            )
        if self.max_drop is not None and use.policy.found["procedure"] == "last exit alone":
            say(
                f"No image leaves early: on the {use.images} images of {use.split} no policy that lets one leave "
                f"shows a drop of at most {self.max_drop:g} points, two standard errors added. Allow more, or hold out "
                "more images."
            )
        where = f"{use.images} of {use.split}"
        remark = f"On the search images ({where}), where the thresholds were found: a description, no promise."
        print_result(use.to_json, lambda: exit_table(use, remark), [use.written], as_json=self.json)


@in_threads
def find_policy(
    options: PolicyOptions, *, measure: "Measure | None" = None, watch: Watch = QUIET, **by_hand: Unpack[ByHand]
) -> "PolicyUse":
    """Find thresholds for a target on the `search` half of a finished run: see `offramp.evaluation.policy_for`.

    Not exactly one target, one that cannot be met, and a latency without times measured for these weights and this
    batch are refused.
    """
    from offramp.commands.bench.exit_times import exit_times
    from offramp.commands.open_run import OpenRun
    from offramp.commands.policy_files import write_policy
    from offramp.evaluation import fit_temperatures, policy_for
    from offramp.evaluation.targets import check_one, check_target
    from offramp.policy import Measure
    from offramp.storage import weights_hash

    wanted = {"budget": options.budget, "max_drop": options.max_drop, "latency": options.latency}
    check_one(**wanted)
    if options.budget is not None and options.batch is not None:
        raise UsageError("A budget counts operations, whatever the batch; for milliseconds give a latency.")
    run = OpenRun(options, **by_hand)
    written = target(options.out, run.folder.policy)
    times: tuple[float, ...] | None = None
    where: dict[str, str] = {}
    if options.latency is not None or options.batch is not None:
        weights = weights_hash(run.network.state_dict())
        times, where = exit_times(run.folder, weights, options.batch or BATCH, run.network.num_exits)
    check_target(run.cost, **wanted, times=times)
    with watch.bars() as progress:
        (search,) = run.held_out("search", progress=progress)
    measure = measure or Measure(options.measure, renormalise=options.renormalise)
    if options.temperature:
        temperatures = fit_temperatures(search, renormalise=measure.renormalise)
        measure = dataclasses.replace(measure, temperatures=temperatures)
    policy = policy_for(search, run.cost, **wanted, times=times, measure=measure)
    policy = dataclasses.replace(policy, found={**policy.found, **where})
    return write_policy(policy, search, run.cost, written)
