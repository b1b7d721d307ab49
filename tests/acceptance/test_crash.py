"""A crash before any change that a sweep makes to its disk: the folder tells the truth, and --resume completes it.

One sweep runs, and before each change its folder is copied: the copy is what a crash at that moment would leave.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.project import Outcome, Project
from tests.servers.timed import TimedServer, timed_server

SWEEP = ("--isl", "16", "--osl", "1", "--accuracy", "off", "--num-prompts", "4", "--conc", "1,2")
#: Requests of each point, warm-ups included.
REQUESTS = {1: 6, 2: 8}
#: Functions of `os` that change a folder, and the place of the path that they change.
CHANGES = {"mkdir": 0, "replace": 1, "rename": 1, "symlink": 1, "unlink": 0, "remove": 0, "rmdir": 0, "truncate": 0}
#: The order in which a point goes through its states.
STATES = ("NOT RUN", "STARTED", "PASSED")


@dataclass(frozen=True)
class Crash:
    """What a crash leaves: the copy of a project, and the change that did not happen any more."""

    project: Project
    change: str

    @property
    def batch(self) -> Path | None:
        """The batch folder; None before there is one with a state."""
        return next(iter(self.project.batches), None)

    def states(self) -> dict[int, str]:
        """The state of each concurrency in batch.json."""
        assert self.batch is not None
        points = json.loads((self.batch / "batch.json").read_text())["batch"]["points"]
        return {point["conc"]: point["status"] for point in points}

    def summary(self) -> dict[int, str]:
        """The state of each concurrency in summary.txt; none before it is written."""
        assert self.batch is not None
        path = self.batch / "summary.txt"
        lines = re.findall(r"^\[.*CONC=(\d+): ([A-Z ]+[A-Z])", path.read_text() if path.exists() else "", re.MULTILINE)
        return {int(conc): status for conc, status in lines}

    def finished(self) -> dict[int, bytes]:
        """The content of each finished result, by concurrency."""
        found = {}
        for path in self.batch.glob("result_*.json") if self.batch is not None else ():
            if json.loads(path.read_text())["verdict"]["status"] is not None:
                found[int(path.stem.rpartition("conc")[2])] = path.read_bytes()
        return found


class Recorder:
    """Copies a project before each change to its reports, and notes what was flushed to the disk.

    :ivar crashes: The copies, in order.
    :ivar events: ("fsync" or the change, path relative to the project), in order.
    """

    def __init__(self, project: Project, copies: Path) -> None:
        self._project = project
        self._copies = copies
        self.crashes: list[Crash] = []
        self.events: list[tuple[str, str]] = []

    def run(self, *args: str) -> Outcome:
        """Run a sweep and record it."""
        with pytest.MonkeyPatch.context() as patch:
            for name, place in CHANGES.items():
                patch.setattr(os, name, self._before(name, place))
            patch.setattr(os, "fsync", self._fsync(os.fsync))
            return self._project.run(*args)

    def _before(self, name: str, place: int) -> Callable[..., Any]:
        change = getattr(os, name)

        def changed(*args: Any, **options: Any) -> Any:
            if (path := self._relative(os.fspath(args[place]))) is not None:
                self._copy(f"{name} {path}")
                self.events.append((name, path))
            return change(*args, **options)

        return changed

    def _fsync(self, fsync: Callable[[int], None]) -> Callable[[int], None]:
        def flushed(descriptor: int) -> None:
            fsync(descriptor)
            if (path := self._relative(str(Path(f"/proc/self/fd/{descriptor}").readlink()))) is not None:
                self.events.append(("fsync", path))

        return flushed

    def _relative(self, path: str) -> str | None:
        absolute = Path(path).absolute()
        reports = self._project.folder / "reports"
        return str(absolute.relative_to(self._project.folder)) if absolute.is_relative_to(reports) else None

    def _copy(self, change: str) -> None:
        folder = self._copies / str(len(self.crashes))
        # Not with the patched functions.
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGES:
                patch.setattr(os, name, _ORIGINALS[name])
            shutil.copytree(self._project.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        for partial in folder.rglob(".*.partial"):
            if not partial.is_symlink():
                # Not all of what was written had reached the disk.
                partial.write_bytes(partial.read_bytes()[: partial.stat().st_size // 2])
        self.crashes.append(Crash(Project(folder), change))


_ORIGINALS = {name: getattr(os, name) for name in CHANGES}


@pytest.fixture(scope="module")
def server() -> Iterator[TimedServer]:
    with timed_server(ttft_s=0.002) as server:
        yield server


@pytest.fixture(scope="module")
def recorder(server: TimedServer, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """A whole sweep, recorded."""
    recorder = Recorder(Project(tmp_path_factory.mktemp("whole")), tmp_path_factory.mktemp("crashes"))
    outcome = recorder.run(*SWEEP, "--server-url", server.url)
    assert outcome.status == 0, outcome
    return recorder


def test_every_file_is_replaced_whole_and_flushed(recorder: Recorder) -> None:
    """The new file is flushed before it replaces the old one, and its folder is flushed after that."""
    replaced = [place for place, (event, _) in enumerate(recorder.events) if event in ("replace", "rename")]
    files = [place for place in replaced if not recorder.events[place][1].endswith("latest")]
    assert files
    for place in files:
        path = Path(recorder.events[place][1])
        assert recorder.events[place - 1] == ("fsync", str(path.with_name(f".{path.name}.partial")))
        assert recorder.events[place + 1] == ("fsync", str(path.parent))


def test_samples_then_result_then_state_then_summary(recorder: Recorder) -> None:
    """Nothing is said of a point before it is on the disk."""
    names = [Path(path).name for event, path in recorder.events if event in ("replace", "rename")]
    for conc in REQUESTS:
        place = names.index(f"samples_isl16_osl1_conc{conc}.npz")
        assert names[place : place + 4] == [
            f"samples_isl16_osl1_conc{conc}.npz",
            f"result_isl16_osl1_conc{conc}.json",
            "batch.json",
            "summary.txt",
        ]


def test_the_folder_tells_the_truth(recorder: Recorder) -> None:
    """A point that passed has its whole result and samples; the summary says no more than the state does."""
    seen = set()
    for crash in recorder.crashes:
        if crash.batch is None or not (crash.batch / "batch.json").exists():
            assert not crash.batch or not [path for path in crash.batch.iterdir() if path.suffix != ".partial"]
            continue
        states, finished = crash.states(), crash.finished()
        seen.add(tuple(states.values()))
        passed = {conc for conc, status in states.items() if status == "PASSED"}
        assert passed <= finished.keys(), crash.change
        # A result is written before the state says so: at most one is further than the state.
        assert len(finished) <= len(passed) + 1, crash.change
        for conc in finished:
            assert (crash.batch / f"samples_isl16_osl1_conc{conc}.npz").exists(), crash.change
        for conc, status in crash.summary().items():
            behind = STATES.index(states[conc]) - STATES.index(status)
            assert behind in (0, 1), crash.change
    assert seen >= {("NOT RUN", "NOT RUN"), ("STARTED", "NOT RUN"), ("PASSED", "STARTED"), ("PASSED", "PASSED")}


def test_resume_completes_it(recorder: Recorder, server: TimedServer) -> None:
    """Finished results stay as they are, to the byte, and only what is missing is measured."""
    resumed = 0
    for crash in recorder.crashes:
        if crash.batch is None:
            continue
        finished, before = crash.finished(), len(server.truth()["requests"])
        begun = (crash.batch / "batch.json").exists() and crash.states()
        outcome = crash.project.run("--resume", str(crash.batch))
        if not begun:
            # Nothing was selected yet, so there is nothing to complete.
            assert outcome.status == 4, (crash.change, outcome)
            continue
        resumed += 1
        assert outcome.status == 0, (crash.change, outcome)
        assert set(crash.states().values()) == set(crash.summary().values()) == {"PASSED"}, crash.change
        assert finished.items() <= crash.finished().items(), crash.change
        missing = REQUESTS.keys() - finished.keys()
        assert len(server.truth()["requests"]) - before == sum(REQUESTS[conc] for conc in missing), crash.change
        assert not list(crash.batch.glob(".*.partial")), crash.change
    assert resumed
