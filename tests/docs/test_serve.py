"""The curl lines of docs/serve.md are run, in their order, against the server that it starts."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from offramp.cli import main

GUIDE = Path(__file__).parents[2] / "docs" / "serve.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_every_line_of_curl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    example = next(line for line in lines if line.startswith("offramp example"))
    monkeypatch.chdir(tmp_path)
    assert main(example.split()[1:]) == 0
    command = [sys.executable, "-m", "offramp", "serve", "garments", "--port", "0", "--json", "--backend", "torch"]
    command += ["--within-ms", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = json.loads(server.stdout.readline())["address"]
            asked = [line for line in lines if line.startswith(("curl", "echo"))]
            assert len(asked) >= 8
            for line in asked:
                here = line.replace("http://localhost:8000", address)
                done = subprocess.run(here, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
                assert done.returncode == 0, (line, done.stderr)
                if "predict" in line:
                    assert re.search(r'"class_name":"(Bag|Coat|Shirt|Dress)"', done.stdout)
        finally:
            server.terminate()
        assert server.wait(60) == 0
