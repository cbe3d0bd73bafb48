"""What messages and docstrings tell a reader to call is there."""

import ast
import importlib
import re
from pathlib import Path

import offramp

CALL = re.compile(r"\b(offramp(?:\.\w+)+)(?=\()")


def calls() -> set[str]:
    """Names such as `offramp.export.parts` that stand before a bracket in a string of the package."""
    texts = (
        node.value
        for path in Path(offramp.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return {name for text in texts for name in CALL.findall(text)}


def test_what_messages_tell_to_call_can_be_called() -> None:
    """A module renamed to `part` had made `offramp.export.part(network)` of the function in a message."""
    names = calls()
    assert len(names) > 5
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            owner = importlib.import_module(module)
        except ModuleNotFoundError:  # a class's method
            outer, _, kind = module.rpartition(".")
            owner = getattr(importlib.import_module(outer), kind)
        assert callable(getattr(owner, attribute)), name


def test_files_that_the_docs_name_are_there() -> None:
    """Pages named files of rooms that had moved."""
    root = Path(__file__).parents[1]
    pages = [page for page in (root / "docs").glob("*.md") if page.name != "LOG.md"]  # it tells what was
    missing = [
        f"{page.name}: {name}"
        for page in pages
        for name in re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", page.read_text())
        if not any((root / above / name).is_file() for above in (".", "src/offramp", "tests"))
    ]
    assert not missing
