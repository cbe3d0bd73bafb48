"""The errors a user meets as one clear line; anything else is ours and keeps its traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """Something that was asked for cannot be: what, which value, the way out. The command line exits with status 2."""


class OfframpError(RuntimeError):
    """Something went wrong that the user can mend: a damaged file, a full disk, a loss that is not finite. Status 1."""


class SeveralErrors(OfframpError):  # noqa: N818 - they are
    """The same of several things at once: a line that says what they have in common, and one for each."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        super().__init__("\n  ".join(lines))


@contextmanager
def needs(library: str, extra: str) -> Iterator[None]:
    """Refuses an import within it that fails, with the extra that has the library."""
    try:
        yield
    except ImportError as error:
        raise UsageError(f"{library} is not installed: pip install 'offramp[{extra}]'.") from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without a full stop; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
