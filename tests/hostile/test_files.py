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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("file", files.READ_BY)
def test_a_damaged_file_is_a_line_or_does_no_harm(file: str, seed: int, run: Path, tmp_path: Path) -> None:
    assert failures(run, file, 12, seed, tmp_path, slow=seed == 0) == []
