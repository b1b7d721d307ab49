"""What tests that start real servers and real sweeps share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="module")
def reference_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One embedded engine for a module's tests."""
    from pytest_dsr1.servers.reference import ReferenceServer

    server = ReferenceServer(tmp_path_factory.mktemp("engine") / "engine.log")
    try:
        yield server.start().url
    finally:
        server.stop()
