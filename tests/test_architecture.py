"""Imports go down only: docs/design.md, "Rooms, and who may import whom"."""

import ast
import subprocess
import sys
from collections.abc import Set
from pathlib import Path

import pytest

import offramp

PACKAGE = Path(offramp.__file__).parent
BOTTOM = [
    "errors",
    "terminal",
    "choices",
    "batch",
    "checks",
    "registry",
    "trust",
    "config",
    "storage",
    "json_files",
    "processes",
    "devices",
    "network",
    "files",
    "policy",
    "certificate",
    "ladder",
    "costs",
]  # each may import those before it
LEVELS = {
    **dict.fromkeys(BOTTOM, 0),
    **dict.fromkeys(["graphs", "data"], 1),
    **dict.fromkeys(["backbones", "objectives", "evaluation", "loading", "shipped"], 2),
    **dict.fromkeys(["rules", "export"], 3),
    **dict.fromkeys(["training", "runtime"], 4),
    "results": 5,
    "serve": 5,
    "show": 6,
    "hub": 6,
    "paper": 7,
    "commands": 8,
    "cli": 9,
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


def module_name(path: Path) -> str:
    parts = ["offramp", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(source: str, modules: Set[str]) -> set[str]:
    """Those of `modules` that a source imports anywhere: inside a function and for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules


def circles(imports: dict[str, set[str]]) -> set[str]:
    """The modules that import themselves, by way of others or not."""
    reached = {name: set(there) for name, there in imports.items()}
    for middle in reached:
        for there in reached.values():
            if middle in there:
                there |= reached[middle]
    return {name for name, there in reached.items() if name in there}


def test_no_circle_of_modules() -> None:
    """Also none that Python does not see because a part of it is for type checkers, or waits inside a function."""
    paths = {module_name(path): path for path in MODULES}
    del paths["offramp"]  # the facade: names in it load when they are first used
    imports = {name: imported_modules(path.read_text(), paths.keys() - {name}) for name, path in paths.items()}
    assert circles(imports) == set()


def test_a_circle_behind_type_checking_is_seen() -> None:
    sources = {
        "offramp.a": "from offramp.b import f",
        "offramp.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from offramp import c",
        "offramp.c": "def g():\n    import offramp.a",
        "offramp.d": "from offramp.a import f\nfrom torch import nn",
    }
    imports = {name: imported_modules(source, set(sources)) for name, source in sources.items()}
    assert circles(imports) == {"offramp.a", "offramp.b", "offramp.c"}


def test_every_room_has_a_level() -> None:
    assert {room(path) for path in MODULES} - {"__init__", "__main__"} == set(LEVELS)


@pytest.mark.parametrize("module", ["offramp", "offramp.config", "offramp.commands", "offramp.cli"])
def test_no_torch_before_a_command_runs(module: str) -> None:
    code = f"import sys, {module}; assert not {{'torch', 'numpy', 'matplotlib'}} & set(sys.modules), 'loaded'"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_torchvision_before_a_name_or_a_file_asks_for_it() -> None:
    """It brings torch._dynamo, 2.8 s of processor time a command."""
    code = "import sys, offramp.training, offramp.evaluation, offramp.runtime, offramp.show.report\n"
    code += "assert not {'torchvision', 'torch._dynamo'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist() -> None:
    for name in offramp.__all__:
        assert getattr(offramp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = offramp.nothing
