import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table

from offramp.terminal import OutputError, Screen, display, duration_in_words, escaped, say, standard_streams

UNSAFE = [*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *"\u2028\u2029\u202a\u202e\u2066\u2069\u200e\u200f\u061c"]


def test_control_characters_are_written_out_and_what_can_be_printed_stays() -> None:
    plain = "a \\ ~ é ä 漢 👩‍👧 [bold] \u00a0 %"
    assert escaped(plain) == plain
    for character in UNSAFE:
        assert escaped(f"a{character}b").isprintable(), repr(character)
    assert escaped("\x1b\n\u202e\x9b\udc9b") == r"\x1b\n\u202e\x9b\x9b"
    assert len({escaped(character) for character in UNSAFE}) == len(UNSAFE)


def test_a_screen_escapes_cells_titles_and_lines_but_not_its_own_codes() -> None:
    shown = io.StringIO()
    screen = Screen(file=shown, force_terminal=True, width=60, color_system="standard")
    table = Table(title="t\x1b[2J")
    table.add_column("c\x9b", style="red")
    table.add_row("x\x1b]0;evil\x07")
    screen.print(table, "line\x1b[5m", markup=False)
    text = shown.getvalue()
    for evil in ("\x1b[2J", "\x9b", "\x1b]", "\x07", "\x1b[5m"):
        assert evil not in text
    assert "\x1b[31m" in text  # red
    assert r"x\x1b]0;" in text  # as much of it as there is room for


def test_what_is_said_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\nofframp: Done.\r")
    assert capsys.readouterr().err == "a\\nofframp: Done.\\r\n"


@contextlib.contextmanager
def full() -> Iterator[None]:
    """Standard streams of a process, on a full disk. No fixture: pytest sets its own streams after those."""
    with pytest.MonkeyPatch.context() as patch, open("/dev/full", "w") as out, open("/dev/full", "w") as err:
        for name, stream in (("stdout", out), ("stderr", err)):
            patch.setattr(sys, name, stream)
            patch.setattr(sys, f"__{name}__", stream)
        yield


def write_and_say(error: BaseException | None = None) -> None:
    with standard_streams():
        say("to nobody")
        print("lost")
        if error is not None:
            raise error
        sys.stdout.flush()


def test_full_output_is_an_error_and_a_full_display_is_none() -> None:
    with full():
        before = sys.stdout, sys.stderr
        with pytest.raises(OutputError, match="Standard output cannot be written: No space left on device"):
            write_and_say()
        assert (sys.stdout, sys.stderr) == before
        with display():
            say("to nobody")
        assert sys.stderr == before[1]


def test_an_error_under_way_is_not_hidden_by_that_of_the_output() -> None:
    with full(), pytest.raises(KeyError):
        write_and_say(KeyError())


def test_streams_that_a_program_set_itself_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = io.StringIO()
    monkeypatch.setattr(sys, "stderr", own)
    with standard_streams():
        assert sys.stderr is own
        say("here")
    assert own.getvalue() == "here\n"


def test_times_in_words() -> None:
    seconds = (0.2, 40, 240, 1800, 8280, 3.25 * 3600, 100 * 3600)
    assert [duration_in_words(one) for one in seconds] == ["1 s", "40 s", "4 min", "30 min", "2.3 h", "3.2 h", "4 days"]
