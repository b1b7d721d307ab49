"""A pytest plugin that benchmarks the servers of DeepSeek-R1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_dsr1.core.config import Point, Scenario
    from pytest_dsr1.core.evidence import Finding
    from pytest_dsr1.core.result import Result
    from pytest_dsr1.core.server import Served

__all__ = ["Finding", "Point", "Result", "Scenario", "Served"]
__version__ = "0.1.0"

_HOMES = {"Point": "config", "Scenario": "config", "Finding": "evidence", "Result": "result", "Served": "server"}


def __getattr__(name: str) -> Any:
    # Imported at the first use: every pytest session imports this package.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.core.{_HOMES[name]}"), name)
