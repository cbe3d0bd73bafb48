"""Files of a run's folder that are damaged."""

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
from hostile import files

CASES = 40  # of each file, of some thousands


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


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.prepare(tmp_path_factory.mktemp("quick"), quickly=True)


def test_a_few_damages_of_the_files_that_most_commands_read(small_run: Path, tmp_path: Path) -> None:
    """A file nested deeply ended in a RecursionError, one of another type in whatever met it first."""
    hostile = ("nested objects", "nested 900 times", "NaN", "not UTF-8", "a list")
    cases = [("config.json", "cost", name) for name in hostile]
    cases += [(file, "predict", name) for file in ("input.json", "policy.json") for name in hostile[:2]]
    cases += [("split.json", "certify", hostile[0])]
    found = {
        (file, name): failure
        for file, command, name in cases
        if (failure := files.failure(small_run, file, files.TEXTS[name], command, tmp_path))
    }
    assert found == {}


@pytest.mark.parametrize("file", [name for name in files.READERS if not name.endswith(".safetensors")])
def test_any_damage_of_any_field_is_a_line(small_run: Path, file: str) -> None:
    """Fields as each type, NaN, a huge number, nested, missing; texts that are no JSON of ours."""
    content = (small_run / file).read_bytes()
    lines = content.splitlines(keepends=True) if file.endswith(".jsonl") else [content]
    cases = [(what, b"".join([*lines[:-1], damaged])) for what, damaged in files.every_damage(lines[-1])]
    cases = random.Random(0).sample(cases, min(CASES, len(cases)))
    assert [(what, found) for what, damaged in cases if (found := files.misread(small_run, file, damaged))] == []
    assert files.misread(small_run, file, content) == ""


@pytest.mark.parametrize("file", [name for name in files.READERS if name.endswith(".safetensors")])
def test_any_damage_of_what_a_file_of_tensors_says_of_itself_is_a_line(small_run: Path, file: str) -> None:
    damages = list(files.damages(file, (small_run / file).read_bytes(), 40, seed=0))
    assert [(what, found) for what, damaged in damages if (found := files.misread(small_run, file, damaged))] == []


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
