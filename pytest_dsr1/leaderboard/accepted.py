"""Labels that nobody recognises, once a user has said that they are what he thinks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pytest_dsr1.journal import write_atomically

NAME = "accepted_schemas.json"


def is_accepted(reports: Path, url: str, labels: Sequence[str]) -> bool:
    """Whether these labels of this leaderboard were accepted before; others of the same one are new."""
    return _read(reports).get(url) == list(labels)


def accept(reports: Path, url: str, labels: Sequence[str]) -> None:
    """Remember that they were."""
    reports.mkdir(parents=True, exist_ok=True)
    known = _read(reports) | {url: list(labels)}
    write_atomically(reports / NAME, json.dumps(known, indent=1, ensure_ascii=False) + "\n")


def _read(reports: Path) -> dict[str, list[str]]:
    try:
        found = json.loads((reports / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
