"""The times that `offramp bench` measured, for a policy that is to be found by them."""

from offramp.errors import UsageError
from offramp.evaluation.thresholds import check_times
from offramp.files import RunFolder
from offramp.results.bench import read_bench


def exit_times(folder: RunFolder, weights: str, batch: str, num_exits: int) -> tuple[tuple[float, ...], dict[str, str]]:
    """Milliseconds of an image that leaves at each exit, from the run's `bench.json`, and where they were measured.

    Args:
        folder: The run's folder.
        weights: Hash of the weights that the times are to be of.
        batch: A size of batch, as a word, or `stream`.
        num_exits: K.

    Raises:
        UsageError: Nothing measured, or not for these weights or this batch; times that cannot be.
        OfframpError: A damaged file.
    """
    way_out = f"`{folder.command('bench')}` measures it"
    if not folder.bench.is_file():
        raise UsageError(f"How long an image takes to each exit is not known: there is no {folder.bench}. {way_out}.")
    measured = read_bench(folder)
    if measured.weights != weights:
        raise UsageError(
            f"{folder.bench} was measured for the network with weights {measured.weights[:12]}, not {weights[:12]}. "
            f"{way_out} anew."
        )
    known = {name: mode.exit_ms for name, mode in measured.modes.items()}
    if batch not in known:
        raise UsageError(f"{folder.bench} has no times for batch {batch}, but for {', '.join(known)}. {way_out} anew.")
    try:
        check_times(known[batch], num_exits)
    except UsageError as error:
        raise UsageError(f"{folder.bench}, batch {batch}: {error} {way_out} anew.") from error
    return known[batch], {"device": measured.conditions.device, "batch": batch}
