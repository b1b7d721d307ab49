"""Finds what travels with the code: `baselines/` lies inside an installed package, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def baselines_dir() -> Path:
    """The folder of baseline tables, in a wheel or a checkout.

    :raises FileNotFoundError: Neither place has one, which means a broken installation.
    """
    candidates = (_PACKAGE / "baselines", _PACKAGE.parent / "baselines")
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    tried = " nor ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"no baselines: neither {tried} is a folder; reinstall pytest-dsr1")


def baseline_text(name: str) -> str:
    """The text of one baseline table, by file name."""
    return (baselines_dir() / name).read_text(encoding="utf-8")
