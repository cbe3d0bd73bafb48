"""Imports go down only: docs/design.md, "Rooms, and who may import whom"."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import offramp

PACKAGE = Path(offramp.__file__).parent
BOTTOM = [
    "errors",
    "terminal",
    "choices",
    "checks",
    "trust",
    "config",
    "storage",
    "processes",
    "devices",
    "drawing",
    "contexts",
    "inplace",
    "network",
    "folding",
    "writes",
    "policy",
    "runs",
    "costs",
]  # each may import those before it
LEVELS = {
    **dict.fromkeys(BOTTOM, 0),
    **dict.fromkeys(["backbones", "objectives", "data", "evaluation", "shipped"], 1),
    **dict.fromkeys(["rules", "export"], 2),
    **dict.fromkeys(["training", "runtime"], 3),
    "results": 4,
    "show": 5,
    "paper": 6,
    "commands": 7,
    "cli": 8,
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "offramp":
        parts = node.module.split(".")
        return [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("offramp.")]
    return []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        for there in imported_rooms(node):
            if there not in LEVELS or there == here:
                continue
            if LEVELS[here] == LEVELS[there] == 0:
                assert BOTTOM.index(there) < BOTTOM.index(here), f"{path} imports {there}"
            else:
                assert LEVELS[there] < LEVELS[here], f"{path} imports {there}"


def test_every_room_has_a_level() -> None:
    assert {room(path) for path in MODULES} - {"__init__", "__main__"} == set(LEVELS)


@pytest.mark.parametrize("module", ["offramp", "offramp.config", "offramp.commands", "offramp.cli"])
def test_no_torch_before_a_command_runs(module: str) -> None:
    code = f"import sys, {module}; assert not {{'torch', 'numpy', 'matplotlib'}} & set(sys.modules), 'loaded'"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist() -> None:
    for name in offramp.__all__:
        assert getattr(offramp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = offramp.nothing
