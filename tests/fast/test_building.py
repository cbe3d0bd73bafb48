"""A library is there whole or not at all, and whoever cannot have one is told how to go on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from offramp.cli import main
from offramp.errors import UsageError
from offramp.fast import building, kernels

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="no compiler")
CODE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for libraries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small source, compiled in a second."""
    path = tmp_path / "small.cpp"
    path.write_text(CODE)
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def another_process(source: Path) -> subprocess.Popen[str]:
    code = (
        f"from pathlib import Path; from offramp.fast.building import compiled; print(compiled(Path({str(source)!r})))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@needs_compiler
def test_it_is_compiled_once_for_each_source(cache: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = building.compiled(source)
    made = library.stat().st_mtime_ns
    assert building.compiled(source) == library
    assert library.stat().st_mtime_ns == made
    assert capsys.readouterr().err.count("Compiling small.cpp") == 1
    source.write_text(CODE.replace("42", "43"))
    assert building.compiled(source) != library
    assert len(files(cache)) == 2


def test_without_a_compiler_one_line_says_so(cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "nothing --at-all")
    with pytest.raises(UsageError, match="there is no nothing here; install g\\+\\+, or set CXX"):
        building.compiled(source)
    assert not cache.exists()


def test_training_without_a_compiler_writes_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "nothing")
    kernels._load.cache_clear()
    out = tmp_path / "run"
    assert main(["train", "--data", "digits", "--form", "kernels", "--out", str(out)]) == 2
    assert "there is no nothing here" in capsys.readouterr().err
    assert not out.exists()
    assert not cache.exists()


@needs_compiler
def test_a_compile_that_fails_leaves_nothing(cache: Path, source: Path) -> None:
    source.write_text("int answer() { return nothing_of_that_name; }")
    with pytest.raises(UsageError, match=r"cannot be compiled by .*nothing_of_that_name.*another form"):
        building.compiled(source)
    assert files(cache) == []


@needs_compiler
def test_processes_that_compile_at_once_do_not_disturb_each_other(cache: Path, source: Path) -> None:
    both = [another_process(source) for _ in range(2)]
    found = {process.communicate(timeout=60)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(found) == 1
    assert len(files(cache)) == 1


@needs_compiler
def test_a_killed_build_leaves_no_library(
    cache: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of its writing; the next one builds."""
    slow = tmp_path / "slow"
    slow.write_text(
        '#!/bin/sh\nfor last; do :; done\nwhile [ "$1" != -o ]; do shift; done\nprintf half > "$2"\nsleep 60\n'
    )
    slow.chmod(0o755)
    monkeypatch.setenv("CXX", str(slow))
    process = another_process(source)
    deadline = time.monotonic() + 60
    while not files(cache) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [Path(name).name for name in files(cache)] == ["made.so"]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list(cache.rglob("small-*.so"))
    monkeypatch.delenv("CXX")
    assert building.compiled(source).stat().st_size > 1000


@pytest.mark.skipif(os.name != "posix", reason="folders of other systems")
def test_a_folder_that_cannot_be_written_is_named(cache: Path, source: Path) -> None:
    cache.write_text("a file is in the way")
    with pytest.raises(UsageError, match=r"cache.*XDG_CACHE_HOME"):
        building.compiled(source)
