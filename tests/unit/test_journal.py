"""The batch folder: what it says after each step, and after a death between two of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_dsr1.batch import result_path, write_atomically
from pytest_dsr1.batch.journal import Journal, JournalError
from pytest_dsr1.core.config import Mode, Point, Scenario
from pytest_dsr1.core.summary import Status
from tests.batches import result_fields

SCENARIO = Scenario(128, 64)
BOTH = ("test_accuracy", "test_perf")


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(tmp_path: Path, clock: Clock) -> Journal:
    journal = Journal.create(tmp_path, SCENARIO, Mode.PERF, {"--isl": "128", "--osl": "64"}, clock)
    journal.select({4: BOTH, 8: BOTH})
    return journal


def summary(journal: Journal) -> str:
    return (journal.folder / "summary.txt").read_text()


def write_result(journal: Journal, conc: int, written: float, status: str = "PASSED", reason: str = "") -> None:
    fields = result_fields(conc) | {"written": written, "verdict": {"status": status, "reason": reason}}
    write_atomically(result_path(journal.folder, Point(SCENARIO, conc)), json.dumps(fields))


def test_exists_from_the_first_second(tmp_path: Path, clock: Clock) -> None:
    """A batch without points has a summary already."""
    journal = Journal.create(tmp_path, SCENARIO, Mode.PERF, {}, clock)
    journal.lock()
    assert "Total tests: 0" in summary(journal)


def test_second_batch_of_a_second_gets_a_number(tmp_path: Path, clock: Clock) -> None:
    """Two batches never share a folder, and `latest` points to the newer one."""
    first, second = (Journal.create(tmp_path, SCENARIO, Mode.PERF, {}, clock) for _ in range(2))
    second.select({4: BOTH})
    assert second.folder.name == f"{first.folder.name}_2"
    assert (tmp_path / "latest").resolve() == second.folder


def test_line_follows_the_point(journal: Journal, clock: Clock) -> None:
    """Not run, started, passed: each is on disk as soon as it is so."""
    assert "[1/2] ISL=128 OSL=64 CONC=4: NOT RUN" in summary(journal)
    journal.start(4)
    assert "CONC=4: STARTED " in summary(journal)
    clock.now += 12.4
    journal.end(4, Status.PASSED)
    assert "CONC=4: PASSED (12s)\n" in summary(journal)


def test_reopened_batch_goes_on(journal: Journal, clock: Clock) -> None:
    """Options, first start and finished points are what they were."""
    journal.start(4)
    journal.end(4, Status.FAILED, "why")
    again = Journal.reopen(journal.folder, clock)
    assert again.batch == journal.batch
    assert again.options == {"--isl": "128", "--osl": "64"}


def test_killed_between_result_and_summary(journal: Journal, clock: Clock) -> None:
    """A result that was on disk counts, although the summary had no time to say so."""
    journal.start(4)
    write_result(journal, 4, clock.now + 30, "FAILED", "h2: impossible")
    state = Journal.reopen(journal.folder, clock).batch.point(4)
    assert (state.status, state.elapsed_s, state.reason) == (Status.FAILED, 30.0, "h2: impossible")


@pytest.mark.parametrize("status", ["UNFINISHED", "?"])
def test_half_a_result_does_not_count(journal: Journal, clock: Clock, status: str) -> None:
    """A result that has accuracy but waits for performance leaves the point to be run."""
    journal.start(4)
    write_result(journal, 4, clock.now + 30, status)
    assert Journal.reopen(journal.folder, clock).batch.point(4).status is Status.STARTED


def test_result_that_was_to_be_replaced_does_not_count(journal: Journal, clock: Clock) -> None:
    """Killed while measuring a point again, the batch does not pass the old result off as the new one."""
    write_result(journal, 4, clock.now - 1)
    journal.start(4)
    assert Journal.reopen(journal.folder, clock).batch.point(4).status is Status.STARTED


def test_damaged_result_does_not_count(journal: Journal, clock: Clock) -> None:
    """A file that is no result is as good as none."""
    journal.start(4)
    write_atomically(result_path(journal.folder, Point(SCENARIO, 4)), "{")
    assert Journal.reopen(journal.folder, clock).batch.point(4).status is Status.STARTED


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no batch folder"),
        ("{", "cannot be resumed: "),
        ("[]", "cannot be resumed: "),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1, "options": {}, "batch": {"isl": 0}}', "cannot be resumed: "),
    ],
)
def test_what_is_no_batch_says_so(tmp_path: Path, content: str | None, message: str) -> None:
    """A folder that cannot be resumed is named, with the reason."""
    if content is not None:
        (tmp_path / "batch.json").write_text(content)
    with pytest.raises(JournalError, match=message) as caught:
        Journal.reopen(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_empty_batch_leaves_nothing(tmp_path: Path, clock: Clock) -> None:
    """When no test was selected, folder and link go again."""
    journal = Journal.create(tmp_path, SCENARIO, Mode.PERF, {}, clock)
    assert journal.discard_if_empty()
    assert list(tmp_path.iterdir()) == []


def test_latest_stays_where_nothing_is_selected(tmp_path: Path, journal: Journal, clock: Clock) -> None:
    """A mistyped selection does not take away the link to the last good batch."""
    Journal.create(tmp_path, SCENARIO, Mode.PERF, {}, clock).discard_if_empty()
    assert (tmp_path / "latest").resolve() == journal.folder


def test_one_session_at_a_time(journal: Journal, clock: Clock) -> None:
    """A batch that is being measured cannot be resumed."""
    journal.lock()
    with pytest.raises(JournalError, match="is being measured by another session"):
        Journal.reopen(journal.folder, clock).lock()


def test_batch_is_of_one_model(journal: Journal, clock: Clock) -> None:
    """It is remembered, and another one is refused."""
    journal.serve("external", "theirs")
    again = Journal.reopen(journal.folder, clock)
    again.serve("external", "theirs")
    with pytest.raises(JournalError, match=r"was begun on external / theirs \(engine / model\), now reference / ours"):
        again.serve("reference", "ours")


def test_batch_with_points_is_not_discarded(journal: Journal) -> None:
    """Points make a batch worth keeping, run or not."""
    assert not journal.discard_if_empty()
    assert journal.folder.exists()


def test_replaced_whole(tmp_path: Path) -> None:
    """A write that fails half-way leaves the old content."""
    path = tmp_path / "file"
    write_atomically(path, "old")
    (tmp_path / ".file.partial").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(path, "new")
    assert path.read_text() == "old"
