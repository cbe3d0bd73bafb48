"""A new objective, rule, backbone, data set or command is its file and a line in `registry`, and nothing else."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import offramp

FILES = {
    "objectives/focal.py": """
from dataclasses import dataclass
from offramp.objectives.base import Objective, Terms
from offramp.objectives.cross_entropy import CrossEntropy

@dataclass(frozen=True)
class Focal(Objective):
    power: float = 2.0

    def terms(self, logits_KBC, targets_B, *, progress=0.0):
        plain_KB = CrossEntropy().terms(logits_KBC, targets_B).loss_KB
        true_KB = (-plain_KB).exp()
        return Terms((1 - true_KB) ** self.power * plain_KB, {"F_true": true_KB.detach()})
""",
    "rules/even_lengths.py": """
from dataclasses import dataclass
from offramp.rules.base import TrainingRule

@dataclass(eq=False)
class EvenLengths(TrainingRule):
    needs_plain = True
    power: float = 1.0

    def step(self, batch, progress):
        return self.bench.descend(batch, progress, combine=self._weights)

    def _weights(self, gramian_KK):
        length_K = gramian_KK.diagonal().sqrt().clamp(min=1e-12)
        return (length_K.mean() / length_K) ** self.power
""",
    "backbones/tiny.py": """
from itertools import pairwise
from torch import nn
from offramp.network import EarlyExitNet, builder

@builder
def tiny(*, num_classes=10, damping=False, in_channels=3, width=4):
    stages = [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise([in_channels, width, 2 * width])]
    pool = lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    exits = [nn.Sequential(pool(), nn.Linear(w, num_classes + damping)) for w in (width, 2 * width)]
    return EarlyExitNet(stages, exits, num_classes=num_classes, damping=damping)
""",
    "data/stripes.py": """
import numpy as np
from offramp.data.base import builder
from offramp.data.numpy_arrays import arrays

@builder
def stripes(*, batch_size=64, holdout=None):
    labels = np.arange(400) % 2
    images = np.random.default_rng(0).integers(0, 60, (400, 16, 16), dtype=np.uint8)
    images[labels == 0, ::2] += 150
    return arrays(images[:300], labels[:300], images[300:], labels[300:], batch_size=batch_size, holdout=holdout)
""",
    "commands/greet.py": '''
from dataclasses import dataclass
from offramp.commands.options import Options

@dataclass(frozen=True, kw_only=True)
class GreetOptions(Options):
    """Say hello."""

    def main(self) -> None:
        print("hello")
''',
}
LINES = {
    "OBJECTIVES": '"focal": "objectives.focal:Focal",',
    "RULES": '"even-lengths": "rules.even_lengths:EvenLengths",',
    "BACKBONES": '"tiny": "backbones.tiny:tiny",',
    "DATA": '"stripes": "data.stripes:stripes",',
    '    "Use"': '"greet": "commands.greet:GreetOptions",',
}
PROGRAM = """
import contextlib, sys
import pytest
assert pytest.main(sys.argv[1:]) == 0
from offramp import trust
from offramp.cli import main
from offramp.paper.methods import LEAGUE
for words in (["--help"], ["train", "--help"], ["greet"], ["names"]):
    print("##", *words)
    with contextlib.suppress(SystemExit):
        assert main(words) == 0
print("## league")
print(*(method.label for method in LEAGUE), sep="\\n")
print("## trust", *trust.REGISTERED["objective"], *trust.REGISTERED["rule"], *trust.REGISTERED["network"])
words = "train --data stripes --network tiny width=3 --objective focal --rule even-lengths --epochs 1 --out run"
assert main(words.split()) == 0
"""
PROPERTIES = {  # tests for all of a registry, and how many at least hold for the new one
    "objectives/test_promises.py": ("focal", 10),
    "rules/test_rules.py": ("even-lengths", 1),
    "training/test_trunk.py": ("even-lengths", 1),
    "backbones/test_build.py": ("tiny", 2),
    "data/test_registry.py": ("stripes", 1),
    "cli/test_init.py": ("greet", 1),
}


def test_one_of_each_is_a_file_and_a_line(tmp_path: Path) -> None:
    package = tmp_path / "offramp"
    shutil.copytree(Path(offramp.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        (package / name).write_text(text)
    registry = (package / "registry.py").read_text()
    for table, line in LINES.items():
        registry = re.sub(rf"^{table}: .*$", rf"\g<0>\n    {line}", registry, flags=re.MULTILINE)
    (package / "registry.py").write_text(registry)

    tests = Path(__file__).parent
    words = ["-v", "-p", "no:cacheprovider", "-c", str(tests.parent / "pyproject.toml")]
    words += ["-k", " or ".join(name for name, _ in PROPERTIES.values()), *(str(tests / file) for file in PROPERTIES)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = dict(re.findall(r"^## (.*)\n([^#]*)", done.stdout, flags=re.MULTILINE))
    assert "greet" in shown["--help"]
    assert shown["greet"].strip() == "hello"
    for name in ("focal", "even-lengths", "tiny", "stripes"):
        assert name in shown["train --help"]
        assert name in shown["names"]
    assert {"focal", "even-lengths"} <= set(shown["league"].splitlines())
    (trusted,) = (key for key in shown if key.startswith("trust"))
    for path in ("objectives.focal:Focal", "rules.even_lengths:EvenLengths", "backbones.tiny:tiny"):
        assert f"offramp.{path}" in trusted
    for file, (name, least) in PROPERTIES.items():
        assert len(re.findall(rf"{file}::\S*{name}\S* PASSED", done.stdout)) >= least, done.stdout
