"""The core is values and arithmetic, and modules stay small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pytest_dsr1

PACKAGE = Path(pytest_dsr1.__file__).parent
CORE = sorted(path.stem for path in (PACKAGE / "core").glob("*.py") if path.stem != "__init__")
OUTSIDE = ("pytest", "asyncio", "aiohttp", "requests", "uvloop", "socket")


@pytest.mark.parametrize("module", CORE)
def test_core_imports_nothing_from_outside(module: str) -> None:
    """Imported by itself, no test runner, event loop or network library is loaded."""
    script = (
        f"import sys, pytest_dsr1.core.{module}\n"
        f"print([name for name in {OUTSIDE!r} if name in sys.modules])"
    )  # fmt: skip
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_plugin_costs_a_stranger_little() -> None:
    """Until a sweep is asked for, neither NumPy nor an event loop nor lm-eval is imported."""
    script = (
        "import sys, pytest_dsr1.plugin\n"
        "print([name for name in ('numpy', 'uvloop', 'aiohttp', 'lm_eval', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_modules_are_short() -> None:
    """None is longer than about 400 lines."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path.name: length for path, length in lengths.items() if length > 400} == {}
