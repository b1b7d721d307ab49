"""One session that measures: made of what was typed, run, shown on the terminal.

`activation` makes it, `sweep` runs it in the process that owns it, `workers` in the processes of xdist, `terminal` says
what happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pytest

from pytest_dsr1.bench import AroundLoad, Bench
from pytest_dsr1.core.config import Point
from pytest_dsr1.core.evidence import Check
from pytest_dsr1.core.server import Served


class Session(Protocol):
    """What the fixtures need of a session, in its owner and in a worker."""

    def serve(self) -> Served:
        """Have the session's server answer.

        :raises ServerError: It does not.
        """

    def bench(self, served: Served, around_load: AroundLoad, checks: Sequence[Check]) -> Bench:
        """The measurements on a server.

        :raises ServerError: It cannot be measured.
        """

    def join(self, nodeid: str, point: Point, test: str) -> None:
        """Say that a test measures a point."""


SESSION = pytest.StashKey[Session]()
