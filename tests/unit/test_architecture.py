"""The measures of docs/architecture.md that import-linter does not know; it holds the direction of the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest_dsr1
from tools.module_tables import PAGE, page

PACKAGE = Path(pytest_dsr1.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if not path.is_symlink())
#: Servers that are started like any other: they are no part of the plugin.
APART = ("reference", "leaderboard")
PLUGIN = [path for path in FILES if path.relative_to(PACKAGE).parts[0] not in APART]


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Name and docstring of a module, and of each class and function in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield f"{path.relative_to(PACKAGE)}:{getattr(node, 'name', 'module')}", text


def test_files_are_short() -> None:
    """None has more than 300 lines."""
    assert {path.name: length(path) for path in FILES if length(path) > 300} == {}


def test_the_plugin_is_small() -> None:
    """Its number of files, on the top floor and in all, and its lines, which are to become fewer: the aim is 10,000."""
    assert len(list(PACKAGE.glob("*.py"))) <= 13
    assert len(PLUGIN) <= 65
    assert sum(map(length, PLUGIN)) <= 11_950


def test_docstrings_open_with_one_short_line() -> None:
    """At most 80 characters say what a thing is or does."""
    long = {
        name: text.splitlines()[0]
        for path in FILES
        for name, text in docstrings(path)
        if len(text.splitlines()[0]) > 80 or (len(text.splitlines()) > 1 and text.splitlines()[1].strip())
    }
    assert long == {}


def test_the_page_says_what_the_modules_say() -> None:
    """docs/architecture.md has each module with its own first sentence: `python -m tools.module_tables`."""
    assert PAGE.read_text(encoding="utf-8") == page()
