"""Files of a run's folder that are damaged."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
from hostile import files


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.prepare(tmp_path_factory.mktemp("run"))


def failures(run: Path, file: str, count: int, seed: int, folder: Path, *, slow: bool) -> list[tuple[str, str, str]]:
    found = []
    for what, content in files.damages(file, (run / file).read_bytes(), count, seed):
        for command in files.READ_BY[file]:
            failure = "" if (command in files.SLOW) > slow else files.failure(run, file, content, command, folder)
            found += [(command, what, failure)] if failure else []
    return found


def test_a_few_damages_of_the_files_that_most_commands_read(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """A file nested deeply ended in a RecursionError, one of another type in whatever met it first."""
    run = files.prepare(tmp_path_factory.mktemp("quick"), quickly=True)
    hostile = [files.TEXTS[name] for name in ("nested objects", "nested 900 times", "NaN", "not UTF-8", "a list")]
    read_by = {"config.json": "cost", "input.json": "predict", "policy.json": "predict", "split.json": "certify"}
    found = {
        (file, content[:9]): failure
        for file, command in read_by.items()
        for content in hostile
        if (failure := files.failure(run, file, content, command, tmp_path))
    }
    assert found == {}


def test_what_is_not_damaged_is_no_failure_and_an_exception_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.outcome(["cost", "msdnet7-cifar100"], tmp_path) == ""
    assert files.outcome(["evaluate", "nowhere"], tmp_path, may_fail=True) == ""
    monkeypatch.setattr(files, "main", lambda words: [][0])
    assert files.outcome(["cost"], tmp_path, may_fail=True).startswith("IndexError")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("file", files.READ_BY)
def test_a_damaged_file_is_a_line_or_does_no_harm(file: str, seed: int, run: Path, tmp_path: Path) -> None:
    assert failures(run, file, 12, seed, tmp_path, slow=seed == 0) == []
