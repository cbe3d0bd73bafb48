"""How batches are run, and what was spent on them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from offramp.checks import check_whole

STREAM = "stream"  # the name of the plan for streams, beside those by size of batch

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of rows: few, so that a device's kernels for each of them are made once and stay in its caches."""


@dataclass(frozen=True)
class Plan:
    """How one batch is run. It changes answers only in that no image leaves at an exit that is not asked.

    Attributes:
        asks: Exits (from 0) whose head runs; None: all whose answer matters to the policy. The last always runs.
        compacts: Exits after which rows of images that have left are dropped; None: after every one. A batch of
            several chunks drops them after every one in any case.
        sizes: Numbers of rows that a stage is given once rows have been dropped, which are rounded up to one of them;
            empty: as many as there are.
        chunk: Most rows a stage is given at a time; None: all there are.
        straight: Run to the last exit and ask no other.
    """

    asks: tuple[int, ...] | None = None
    compacts: tuple[int, ...] | None = None
    sizes: tuple[int, ...] = SIZES
    chunk: int | None = 64
    straight: bool = False

    def __post_init__(self) -> None:
        for name in ("asks", "compacts", "sizes"):  # a list is as good, but a plan is looked up by its value
            numbers = getattr(self, name)
            object.__setattr__(self, name, None if numbers is None else tuple(numbers))
        for name, values in (("chunk", () if self.chunk is None else (self.chunk,)), ("sizes", self.sizes)):
            for value in values:
                check_whole(name, value, 1)

    def rows(self, images: int) -> int:
        """The number of rows to run for so many images, at most a chunk."""
        most = max(self.sizes, default=0) if self.chunk is None else self.chunk
        return min((size for size in self.sizes if images <= size <= most), default=images)


def segments(asks: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Stages in runs that end with an exit that is asked, by first and last."""
    return tuple(zip((0, *(k + 1 for k in asks)), asks, strict=False))


@dataclass
class Tally:
    """What an engine has spent since the tally was made; give it to calls, which add to it.

    Attributes:
        timed: Whether to take times. On a GPU this makes it wait after each stage.
        exits_K: Images answered by each exit.
        stage_rows_K: Rows run through each stage, padding included.
        head_rows_K: Rows run through each exit's head, padding included.
        seconds_K: Seconds in the segment that ends with each exit; zeros unless timed.
    """

    num_exits: int
    timed: bool = False
    exits_K: list[int] = field(init=False)
    stage_rows_K: list[int] = field(init=False)
    head_rows_K: list[int] = field(init=False)
    seconds_K: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.exits_K, self.stage_rows_K, self.head_rows_K = ([0] * self.num_exits for _ in range(3))
        self.seconds_K = [0.0] * self.num_exits

    @property
    def images(self) -> int:
        """Images answered."""
        return sum(self.exits_K)

    def answer(self, exits_B: Tensor) -> None:
        """Count images answered, given the exits that answered them."""
        for k, images in enumerate(exits_B.bincount(minlength=self.num_exits).tolist()):
            self.exits_K[k] += images

    def operations(self, stages_K: Sequence[int], heads_K: Sequence[int]) -> int:
        """Operations spent in all, padding included, given those of each stage and of each head for one image."""
        pairs = [*zip(self.stage_rows_K, stages_K, strict=True), *zip(self.head_rows_K, heads_K, strict=True)]
        return sum(rows * operations for rows, operations in pairs)
