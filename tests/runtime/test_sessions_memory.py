"""The sessions of all stages share one pool of memory, seen from outside: in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from offramp.export import ExitFile, StageFile, Stages
from offramp.export.graph import Graph
from offramp.export.tracing import IR_VERSION, OPSET

MAP = [None, 3, 32, 32]
MEMORY = """
import sys
import torch
from pathlib import Path
from offramp.runtime.sessions import Loaded
from offramp.export import Stages

def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

loaded = Loaded(Stages.load(sys.argv[1]), 1)
loaded.logits(torch.randn(1, 3, 32, 32))
before = megabytes()
for size in (1, 30, 64):
    loaded.logits(torch.randn(size, 3, 32, 32))
print(megabytes() - before)
"""


def eight_stages(folder: Path) -> Stages:
    """Each from 3 channels to 32 and back. They are written node by node, which is faster than tracing them."""
    names = ["images", *(f"carry_{k}" for k in range(1, 9))]
    files = [StageFile(f"stage-{k}.onnx", (names[k - 1],), (names[k],)) for k in range(1, 9)]
    exits = [ExitFile(f"exit-{k}.onnx", 0) for k in range(1, 9)]
    contents = []
    for file, leaves in zip(files, exits, strict=True):
        stage, head = Graph("stage/"), Graph("exit/")
        x = file.inputs[0]
        for shape in ((32, 3, 1, 1), (3, 32, 1, 1)):
            x = stage.add("Relu", stage.add("Conv", x, stage.constant(np.full(shape, 0.1), np.float32)))
        stage.call(file.outputs[0], x)
        head.call(leaves.output, head.add("Flatten", head.add("GlobalAveragePool", leaves.input)))
        kinds = [
            (stage, file.inputs[0], MAP, file.outputs[0], MAP),
            (head, leaves.input, MAP, leaves.output, [None, 3]),
        ]
        for graph, given, shape, out, shape_out in kinds:
            ends = (helper.make_tensor_value_info(*end) for end in ((out, 1, shape_out), (given, 1, shape)))
            made = graph.finish("part", *([end] for end in ends))
            opset = [helper.make_opsetid("", OPSET)]
            contents.append(helper.make_model(made, ir_version=IR_VERSION, opset_imports=opset).SerializeToString())
    written = Stages(folder, 3, False, (3, 32, 32), "", tuple(files), tuple(exits))
    written.write(contents)
    return written


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read as Linux tells it")
def test_all_stages_share_their_memory(tmp_path) -> None:
    """A map of 64 images takes 8 MB; a pool for each of the 8 stages would keep one or two such maps each."""
    command = [sys.executable, "-c", MEMORY, str(eight_stages(tmp_path).folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 45
