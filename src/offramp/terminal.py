"""What leaves for a terminal or a pipe: names without control characters, and streams that may not be writable."""

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from offramp.errors import OfframpError

# C0, DEL and C1; marks that turn the direction of writing; the separators of lines; bytes that were no UTF-8.
_UNSAFE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_BUT_NEWLINE = re.compile(_UNSAFE.pattern.replace("\0-\x1f", "\0-\x09\x0b-\x1f"))


class OutputError(OfframpError):
    """Standard output cannot be written; `reader_gone`: the reading end was closed, as by `| head -1`."""

    def __init__(self, error: OSError) -> None:
        self.reader_gone = error.errno == errno.EPIPE
        reason = "it is closed" if error.errno == errno.EBADF else error.strerror
        super().__init__(f"Standard output cannot be written: {reason}.")


def escaped(text: object) -> str:
    r"""`text` as a terminal may have it: control characters as `\x1b` or `\n`; what can be printed stays."""
    return _UNSAFE.sub(_written_out, str(text))


def escaped_lines(text: str) -> str:
    """The same, but for the ends of lines."""
    return _UNSAFE_BUT_NEWLINE.sub(_written_out, text)


def _written_out(character: re.Match[str]) -> str:
    code = ord(character[0])
    return f"\\x{code - 0xDC00:02x}" if code >= 0xDC80 else character[0].encode("unicode_escape").decode()


def short(count: float, *, zeros: bool = True) -> str:
    """A count in few characters: 812, 6.86 k, 12.0 M, 1.36 G; 12 M without `zeros`."""
    for unit, size in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if abs(count) >= size:
            value = count / size
            text = f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
            return (text if zeros or "." not in text else text.rstrip("0").rstrip(".")) + unit
    return f"{count:.3g}"


def duration_in_words(seconds: float) -> str:
    """`40 s`, `4 min`, `2.3 h`, `12 days`: of times that are estimated or measured."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def with_error(value: float, standard_error: float, num_images: int) -> str:
    """`92.35 ±0.27`: a percentage and its standard error over images, but at least 100 / (S + 1).

    Where all answers are right, the standard error is 0, which would claim certainty. Wilson's interval of one standard
    error reaches 100 / (S + 1) down from there; between 0 and 100 % an exit's standard error is always larger.
    """
    return f"{value:.2f} ±{max(standard_error, 100 / (num_images + 1)):.2f}"


_quiet: ContextVar[bool] = ContextVar("_quiet", default=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it, standard error has nothing but errors: no notes, no bars."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def say(text: object) -> None:
    """A note: one line on standard error, unless it is to be quiet."""
    if not _quiet.get():
        say_error(text)


def say_error(text: object) -> None:
    """One line on standard error."""
    print(escaped(text), file=sys.stderr, flush=True)


class Screen(Console):
    """A console whose text, tables and bars included, holds no control characters but its own; see `quiet`."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False, **more: Any) -> None:
        super().__init__(stderr=stderr, quiet=quiet or (stderr and _quiet.get()), **more)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `rich.console.Console.render`."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else escaped_lines(text), style, control)


class _Display(io.FileIO):
    """A file that drops what cannot be written: a closed terminal does not end the work."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError:
            return memoryview(content).nbytes


class _Output(io.FileIO):
    """That it cannot be written is said once."""

    failed = False

    def write(self, content: Any, /) -> int:
        if self.failed:
            return memoryview(content).nbytes
        try:
            return super().write(content)
        except OSError as error:
            self.failed = True
            raise OutputError(error) from error


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Within it, `OutputError` is raised where standard output cannot be written, and standard error drops what cannot.

    Descriptors 0 to 2 that are closed lead to /dev/null from then on: a file that is opened may not get their numbers,
    or libraries and other processes would write into it.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    with display(), _instead("stdout", _Output):
        yield


@contextlib.contextmanager
def display() -> Iterator[None]:
    """Within it, what cannot be written to standard error is dropped."""
    with _instead("stderr", _Display):
        yield


@contextlib.contextmanager
def _instead(name: str, kind: type[io.FileIO]) -> Iterator[None]:
    """Within it, a standard stream of the process is a file of this kind; one that a program set itself stays."""
    before: Any = getattr(sys, name)
    if before is not getattr(sys, f"__{name}__"):
        yield
        return
    if before is None:  # closed: Python's own, too, cannot be written
        raw = kind(os.open(os.devnull, os.O_RDONLY), "w")
        options: dict[str, Any] = {"errors": "replace"}
    else:
        before.flush()
        raw = kind(before.fileno(), "w", closefd=False)
        options = {key: getattr(before, key) for key in ("encoding", "errors", "line_buffering", "write_through")}
    stream = io.TextIOWrapper(io.BufferedWriter(raw), **options)
    setattr(sys, name, stream)
    try:
        yield
    finally:
        with contextlib.suppress(OutputError):  # an error that is under way says more
            stream.flush()
        setattr(sys, name, before)
