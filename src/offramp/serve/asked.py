"""What the query of a request asks: a deadline, a rung of the ladder."""

import math
from urllib.parse import parse_qsl

from offramp.serve.limits import RequestError

_MAX_DEADLINE_MS = 600_000


class Asked:
    """What the query asks: `deadline_ms`, `rung`."""

    def __init__(self, deadline: float | None, rung: int) -> None:
        self.deadline, self.rung = deadline, rung

    @classmethod
    def of(cls, query: bytes, started: float, rungs: int) -> "Asked":
        """Of a query as it came in.

        Args:
            started: When the request began, of `time.perf_counter`: from then on the deadline runs.
            rungs: Of the ladder.

        Raises:
            RequestError: Anything but these two, each once, in their bounds.
        """
        if not query:
            return _PLAIN
        try:
            pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=8)
        except ValueError as error:
            raise RequestError(422, "query", "The query may have deadline_ms and rung.") from error
        deadline, rung = None, 1
        if len(dict(pairs)) < len(pairs):
            raise RequestError(422, "query", "The query names something twice.")
        for name, value in pairs:
            if name == "deadline_ms":
                deadline = started + _number(name, value, float, 0, _MAX_DEADLINE_MS) / 1000
            elif name == "rung":
                rung = int(_number(name, value, int, 1, rungs))
            else:
                raise RequestError(422, "query", "The query may have deadline_ms and rung, nothing else.")
        return cls(deadline, rung)


_PLAIN = Asked(None, 1)


def _number(name: str, value: str, kind: type[float], least: float, most: float) -> float:
    try:
        number = kind(value) if len(value) <= 20 else math.nan
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        what = "a whole number" if kind is int else "a number"
        raise RequestError(422, "query", f"{name} must be {what} from {least:g} to {most:g}.")
    return number
