"""`docs/reliability.md` names a test for each promise; each of them exists, and each test of this folder is named."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from resources.environment import PROJECT

NAMED = set(re.findall(r"(test_\w+\.py)::(test_\w+)", (PROJECT / "docs" / "reliability.md").read_text()))
OWN = Path(__file__)


def written_in(file: Path) -> set[tuple[str, str]]:
    tree = ast.parse(file.read_text())
    return {
        (file.name, node.name)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_promise_names_a_test_that_exists_and_every_test_is_named() -> None:
    """A test that is renamed or deleted takes its promise with it; one that is added is told of."""
    written = [written_in(file) for file in OWN.parent.glob("test_*.py") if file != OWN]
    assert NAMED and set().union(*written) == NAMED
