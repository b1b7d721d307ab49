"""A user's project in a folder of its own, and pytest started there as he starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

BENCH = (ROOT / "tests_bench" / "test_sweep.py").read_text(encoding="utf-8")


class Project:
    """A folder in which pytest is started as a user starts it: a process, with an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "test_sweep.py").write_text(BENCH, encoding="utf-8")
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("MODEL", "PORT", "TP", "TEAM_NAME_ENV") and not name.startswith(("PYTEST_", "COV_"))
        }

    def command(self, *args: str) -> list[str]:
        # Shufflers are installed for tests that ask for them by name.
        return [sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:random_order", *args]

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start pytest and return at once."""
        return subprocess.Popen(
            self.command(*args),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A terminal's Ctrl+C reaches a process group; this one is to have its own.
            start_new_session=True,
        )

    def run(self, *args: str) -> Outcome:
        """Run pytest to its end."""
        process = self.start(*args)
        output, _ = process.communicate(timeout=240)
        return Outcome(process.returncode, output)

    @property
    def batch(self) -> Path:
        """The newest batch folder."""
        return (self.folder / "reports" / "latest").resolve()

    @property
    def batches(self) -> list[Path]:
        return sorted((self.folder / "reports").glob("batch_*"))

    def summary(self) -> str:
        return (self.batch / "summary.txt").read_text(encoding="utf-8")

    def lines(self) -> list[str]:
        """The summary's lines of points, without the times that no two runs share."""
        return [line for line in self.summary().splitlines() if line.startswith("[")]


@dataclass(frozen=True)
class Outcome:
    """How a run of pytest ended."""

    status: int
    output: str

    def __repr__(self) -> str:
        return f"exit status {self.status}\n{self.output}"


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Look again and again until `condition` holds."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.002)
