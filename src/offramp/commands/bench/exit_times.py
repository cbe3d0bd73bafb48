"""The times that `offramp bench` measured, for a policy that is to be found by them."""

from typing import Any

from offramp.errors import OfframpError, UsageError
from offramp.evaluation.thresholds import check_times
from offramp.files import RunFolder, read_json


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
    content = read_json(folder.bench)
    if not _is_bench(content):
        raise OfframpError(f"{folder.bench} is damaged: it is not what was measured. {way_out} anew.")
    if content["weights"] != weights:
        raise UsageError(
            f"{folder.bench} was measured for the network with weights {content['weights'][:12]}, not {weights[:12]}. "
            f"{way_out} anew."
        )
    known = content["exit_ms"]
    if batch not in known:
        raise UsageError(f"{folder.bench} has no times for batch {batch}, but for {', '.join(known)}. {way_out} anew.")
    try:
        check_times(known[batch], num_exits)
    except UsageError as error:
        raise UsageError(f"{folder.bench}, batch {batch}: {error} {way_out} anew.") from error
    return tuple(map(float, known[batch])), {"device": content["device"], "batch": batch}


def _is_bench(content: Any) -> bool:
    """Whether a JSON value has what is read of `bench.json`; numbers are looked at when they are used."""
    return (
        isinstance(content, dict)
        and all(isinstance(content.get(key), str) for key in ("weights", "device"))
        and isinstance(content.get("exit_ms"), dict)
        and all(
            isinstance(times, list)
            and all(isinstance(time, (int, float)) and not isinstance(time, bool) for time in times)
            for times in content["exit_ms"].values()
        )
    )
