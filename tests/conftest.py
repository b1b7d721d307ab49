"""What tests of every kind share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]

# A shell's background job starts with SIGINT ignored, and so do the processes that it starts: Ctrl+C, as some tests
# send it, would never reach them. A signal that has a handler here has its default action in a child process.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Many tests start processes. Without cached bytecode each of them would compile the package anew, half a second of CPU.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# No deadline and no check of the speed: a busy machine is no failure. The same examples in every run: what fails here
# fails again. The last stage of CI takes many: --hypothesis-profile=thorough
for _name, _examples in (("small", 25), ("thorough", 500)):
    settings.register_profile(
        _name,
        max_examples=_examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("small")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data sets and samples of the predecessor that do not travel with the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: it holds data that the project may not ship")
    return folder
