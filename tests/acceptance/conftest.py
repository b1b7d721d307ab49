"""What tests that start real servers and real sweeps share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine import running_engine
from tests.project import Project

#: Random weights, of the architectures of Llama and of DeepSeek-V3.
SGLANG_MODELS = ("tiny-llama", "tiny-dsv3")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="module")
def reference_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One embedded engine for a module's tests."""
    with running_engine(tmp_path_factory.mktemp("engine")) as served:
        yield served.url


@dataclass(frozen=True)
class Installation:
    """SGLang for the CPU: a folder made by setup.sh, and the folder of its scripts."""

    folder: Path
    scripts: Path

    @property
    def python(self) -> Path:
        return self.folder / "venv/bin/python"

    def model(self, name: str) -> Path:
        return self.folder / "models" / name


@pytest.fixture(scope="session")
def sglang(shared: Path) -> Installation:
    """A real SGLang; skipped where there is none."""
    scripts = shared / "tools/sglang_cpu"
    if not (folder := os.environ.get("DSR1_TEST_SGLANG")):
        pytest.skip(f"no SGLang to launch: make one with {scripts}/setup.sh DIR, and set DSR1_TEST_SGLANG=DIR")
    found = Installation(Path(folder).absolute(), scripts)
    for needed in (found.python, scripts / "serve.py", *map(found.model, SGLANG_MODELS)):
        if not needed.exists():
            pytest.skip(f"DSR1_TEST_SGLANG={folder}: there is no {needed}; {scripts}/setup.sh {folder} makes it")
    return found
