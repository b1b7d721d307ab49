"""Writes the tables of docs/architecture.md from the modules' docstrings."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "architecture.md"
PACKAGE: Final = ROOT / "pytest_dsr1"
_BEGIN = "<!-- tables: written by python -m tools.module_tables -->\n"
_END = "<!-- end of tables -->\n"
#: Folders from the top floor down.
ROOMS: Final = (
    "",
    "session",
    "submit",
    "options",
    "servers",
    "accuracy",
    "load",
    "batch",
    "core",
    "reference",
    "leaderboard",
)


def sentence(path: Path) -> str:
    """The first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if text is None:
        raise ValueError(f"{path} has no docstring")
    return text.splitlines()[0]


def tables() -> str:
    """One table for each room: a row a module."""
    parts = []
    for room in ROOMS:
        folder = PACKAGE / room
        files = sorted(path for path in folder.glob("*.py") if not path.is_symlink())
        rows = "\n".join(f"| `{path.name}` | {sentence(path)} |" for path in files)
        title = f"`{room}/`" if room else "The top floor"
        parts.append(f"### {title}\n\n| module | one sentence |\n|---|---|\n{rows}\n")
    return "\n" + "\n".join(parts) + "\n"


def page() -> str:
    """The page with its tables as they should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    return before + _BEGIN + tables() + _END + rest.partition(_END)[2]


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
