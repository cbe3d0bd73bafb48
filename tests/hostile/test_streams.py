"""Standard streams that are closed, full, or read by nobody."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
from hostile import streams


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("streams")
    streams.prepare(made)
    return made


QUICK = [  # each stream, and each quick command, with a few of the others
    ("help", "no output"),
    ("version", "full output"),
    ("help of a command", "output that nobody reads"),
    ("example", "no error"),
    ("predict, table", "full output"),
    ("example", "no stream at all"),
]


@pytest.mark.parametrize(
    ("name", "stream"),
    [
        pytest.param(name, stream, marks=[] if (name, stream) in QUICK else pytest.mark.slow)
        for name in streams.COMMANDS
        for stream in streams.STREAMS
    ],
)
def test_a_command_ends_as_promised(name: str, stream: str, folder: Path) -> None:
    shutil.rmtree(folder / "NEW", ignore_errors=True)
    assert streams.failure(name, stream, folder) == ""


@pytest.mark.slow
def test_training_writes_the_same_bytes_without_its_display(folder: Path) -> None:
    found = []
    for stream in (None, "full error", "no stream at all"):
        shutil.rmtree(folder / "NEW", ignore_errors=True)
        ended = streams.run(streams.COMMANDS["train"], stream, folder)
        assert ended.status == 0, (stream, ended)
        found.append([(folder / "NEW" / name).read_bytes() for name in ("weights.safetensors", "metrics.jsonl")])
    assert found[0] == found[1] == found[2]
