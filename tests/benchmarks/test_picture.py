"""`benchmarks/picture.py`: one picture in two themes."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from tests.results import made_up

from offramp import shipped
from offramp.policy import EVERYBODY, Policy
from offramp.show import figures

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "picture.py"


def test_both_themes_have_the_same_lines_in_their_own_colours(
    script: Callable[[Path], ModuleType], tmp_path: Path
) -> None:
    bench = made_up.bench(Policy((0.5, EVERYBODY)), "", *(made_up.mode(n, (0.2, 1.0)) for n in ("1", "32", "stream")))
    light, dark = (path.read_text() for path in script(SCRIPT).draw(bench, tmp_path))
    assert figures.INK in light
    assert not any(colour in dark for colour in (figures.INK, figures.MUTED, figures.LINE))
    assert light.count("<path") == dark.count("<path") > 10
    assert "batch 32" in dark


def test_a_run_that_was_not_timed_says_what_does_it(
    script: Callable[[Path], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped.copy("digits", tmp_path / "run")
    Policy((0.5, 0.5, EVERYBODY)).save(tmp_path / "run" / "policy.json")
    monkeypatch.setattr("sys.argv", ["picture.py", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="offramp bench"):
        script(SCRIPT).main()
