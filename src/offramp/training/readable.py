"""Before a training begins: can every image be read, those too that are read when it is over?"""

from collections.abc import Sequence

from rich.progress import Progress

from offramp import processes
from offramp.data import Split
from offramp.data.files import check_found
from offramp.terminal import Screen


def check_readable(parts: Sequence[Split]) -> None:
    """Refuse parts with images that cannot be read, and name them.

    A run holds to the images it was begun with, so one that is removed later ends it: it could not be evaluated.

    Raises:
        OfframpError: A line for each of the first twenty files.
    """
    console = Screen(stderr=True, quiet=processes.rank() != 0)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking at every image", total=sum(map(len, parts)) / processes.world_size())
        unreadable = [line for part in parts for line in part.unreadable(lambda count: bar.advance(task, count))]
    check_found(unreadable)
