"""The console script `pytest-dsr1`: what can be done without a sweep."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

#: For each subcommand: the module whose `main(arguments)` is called, and what it does.
_COMMANDS = {
    "leaderboard": ("pytest_dsr1.leaderboard.__main__", "serve a leaderboard of your own"),
    "engine": ("pytest_dsr1.reference.__main__", "serve the embedded reference engine"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status; 2 if there is no such command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in _COMMANDS:
        module = importlib.import_module(_COMMANDS[words[0]][0])
        status: int = module.main(words[1:])
        return status
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in _COMMANDS.items()]
    usage = "\n".join(["usage: pytest-dsr1 COMMAND ... (each has --help)", "", *lines, ""])
    if words and words[0] in ("-h", "--help"):
        print(usage)
        return 0
    problem = f"pytest-dsr1: {words[0]!r} is not a command" if words else "pytest-dsr1: a command is missing"
    print(f"{usage}\n{problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
