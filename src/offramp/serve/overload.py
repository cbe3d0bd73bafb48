"""How full the server is, how fast it empties, and on which rung of the ladder new images run."""

import math


class Pace:
    """How many images a second are answered: lately, and at most.

    Both fade: after `SECONDS` what has been counts for about a third.
    """

    SECONDS = 1.0

    def __init__(self, now: float) -> None:
        self._then = now
        self._answered = self._passed = 0.0
        self._answered_busy = self._busy = 0.0

    def count(self, answered: int, busy: float, now: float) -> None:
        """So many were answered since the last call, in so many seconds of computing."""
        passed = max(now - self._then, 0.0)
        fade, fade_busy = math.exp(-passed / self.SECONDS), math.exp(-busy / self.SECONDS)
        self._answered, self._passed = self._answered * fade + answered, self._passed * fade + passed
        self._answered_busy, self._busy = self._answered_busy * fade_busy + answered, self._busy * fade_busy + busy
        self._then = now

    def rate(self, now: float) -> float:
        """Images answered a second, lately; 0 before the first."""
        passed = self._passed + max(now - self._then, 0.0)
        return self._answered / passed if passed else 0.0

    @property
    def capacity(self) -> float | None:
        """Images answered a second of computing; None before the first."""
        return self._answered_busy / self._busy if self._answered_busy and self._busy else None


class Rungs:
    """Which rung of a ladder new images run on: up at once as the server fills, down one by one once it has emptied.

    Args:
        number: Of rungs.
        calm: Seconds for which the load has to stay below what leads down.
    """

    FIRST, LAST = 0.4, 0.8  # loads at which the second and the last rung begin
    DOWN = 0.5  # of the load at which a rung begins: below it the rung may end

    def __init__(self, number: int, calm: float = 1.0) -> None:
        step = (self.LAST - self.FIRST) / max(number - 2, 1)
        self._begins = [0.0, *(self.FIRST + step * place for place in range(number - 1))]
        self._calm = calm
        self._since: float | None = None  # when the load fell below what leads down
        self.rung = 1

    def at(self, load: float, now: float) -> int:
        """The rung, from 1, at a load: the share of places that are taken."""
        up = max(place for place, begins in enumerate(self._begins, 1) if load >= begins)
        if up >= self.rung:
            self.rung, self._since = up, None
        while load < self.DOWN * self._begins[self.rung - 1]:
            self._since = now if self._since is None else self._since
            if now - self._since < self._calm:
                return self.rung
            self.rung, self._since = self.rung - 1, self._since + self._calm
        self._since = None
        return self.rung
