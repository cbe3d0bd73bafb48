"""The wheel, installed without the clone: it holds the package alone, and all that the README shows works from it.

By the Python that runs the tests; `OFFRAMP_WHEEL_PYTHONS="3.11 3.12 3.13"` in the environment names others. For each of
them pip downloads torch, gigabytes, unless its cache has it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import offramp

ROOT = Path(__file__).parents[1]
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = os.environ.get("OFFRAMP_WHEEL_PYTHONS", RUNNING).split()

pytestmark = pytest.mark.slow


def run(command: Sequence[str | Path], folder: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # it may lead to the clone
    done = subprocess.run(
        command, cwd=folder, env=kept | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT], folder)
    (path,) = folder.glob("*.whl")
    return path


def test_it_is_small_and_holds_the_package_alone(wheel: Path) -> None:
    assert wheel.stat().st_size < 6_000_000
    with zipfile.ZipFile(wheel) as archive:
        names = [Path(name) for name in archive.namelist()]
    assert {name.parts[0] for name in names} == {"offramp", f"offramp-{offramp.__version__}.dist-info"}
    assert not [name for name in names if name.match("test_*.py") or name.name == "conftest.py"]
    assert {Path("offramp/serve/page") / name for name in ("page.html", "style.css", "page.js")} <= {*names}
    licences = [path for part in ("LICENSE", "src/offramp/**/LICENSE") for path in ROOT.glob(part)]
    assert len([name for name in names if "licenses" in name.parts]) == len(licences)


@pytest.mark.parametrize("version", PYTHONS)
def test_it_works_in_an_empty_environment(
    wheel: Path, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYENV_VERSION", version)  # pyenv's stand-ins on the path run no other version than this
    python = sys.executable if version == RUNNING else shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"There is no python{version} here.")
    with tempfile.TemporaryDirectory(dir=tmp_path) as environment:  # gigabytes: not kept with the other files of tests
        binaries = Path(environment) / "bin"
        run([python, "-m", "venv", environment], tmp_path)
        run([binaries / "python", "-m", "pip", "install", "--quiet", wheel], tmp_path)
        run([binaries / "python", "-m", "pip", "check"], tmp_path)
        for words in ("example --out runs/shipped", "certify runs/shipped", "predict runs/shipped runs/shipped/images"):
            run([binaries / "offramp", *words.split()], tmp_path)
        examples = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
        assert examples
        for example in examples:
            run([binaries / "python", "-c", example], tmp_path)
