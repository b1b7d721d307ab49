"""summary.txt: the words, and that they are right at every moment."""

from __future__ import annotations

import time
from dataclasses import replace

import msgspec
import pytest

from pytest_dsr1.core.config import Mode
from pytest_dsr1.core.summary import Batch, PointState, Status, render_summary
from pytest_dsr1.core.text import convert

FOLDER = "batch_isl1024_osl1024_20251125_150000"
STARTED = time.mktime((2025, 11, 25, 15, 0, 0, 0, 0, -1))


@pytest.fixture
def batch() -> Batch:
    return Batch(
        isl=1024,
        osl=1024,
        mode=Mode.SUBMIT,
        started=STARTED,
        points=tuple(PointState(conc=conc, tests=("test_accuracy", "test_perf")) for conc in (4, 8, 16, 32, 64)),
    )


def ended(conc: int, status: Status, elapsed_s: float, reason: str = "") -> PointState:
    return PointState(conc=conc).started_at(STARTED).ended(status, STARTED + elapsed_s, reason)


def test_every_status_has_its_words(batch: Batch) -> None:
    """A batch with one point of each kind reads as the contract says, to the letter."""
    batch = (
        batch.with_point(ended(4, Status.PASSED, 180.2))
        .with_point(ended(8, Status.FAILED, 41, "accuracy gate: word_perplexity 3.4012 > 3.3498"))
        .with_point(ended(16, Status.INTERRUPTED, 12))
        .with_point(PointState(conc=64).started_at(STARTED + 581))
        .with_note("server: started once")
    )

    assert render_summary(batch, FOLDER) == (
        """\
Multi-Concurrency Test Results
ISL: 1024, OSL: 1024
Mode: submit
Time: Tue Nov 25 15:00:00 2025
============================================

[1/5] ISL=1024 OSL=1024 CONC=4: PASSED (180s)
[2/5] ISL=1024 OSL=1024 CONC=8: FAILED (41s) accuracy gate: word_perplexity 3.4012 > 3.3498
[3/5] ISL=1024 OSL=1024 CONC=16: INTERRUPTED (12s)
[4/5] ISL=1024 OSL=1024 CONC=32: NOT RUN
[5/5] ISL=1024 OSL=1024 CONC=64: STARTED 15:09:41

============================================
Multi-Concurrency Test Incomplete!
============================================
Total tests: 5
Passed: 1
Failed: 1

Results saved in: batch_isl1024_osl1024_20251125_150000/
============================================
server: started once
"""
    )


def test_complete_once_every_point_passed_or_failed(batch: Batch) -> None:
    """A failure completes a batch as well as a success does; nothing else does."""
    for conc in (4, 8, 16, 32):
        batch = batch.with_point(ended(conc, Status.PASSED, 1))
    assert not batch.complete
    assert not batch.with_point(ended(64, Status.INTERRUPTED, 1)).complete
    assert "Test Complete!" in render_summary(batch.with_point(ended(64, Status.FAILED, 1, "why")), FOLDER)


def test_reason_stays_on_its_line(batch: Batch) -> None:
    """A reason of several lines becomes one, and no escape sequence of a server's reaches a terminal."""
    text = render_summary(batch.with_point(ended(4, Status.FAILED, 1, "first\n  second\x1b[2J naïve")), FOLDER)
    assert "CONC=4: FAILED (1s) first second [2J naïve\n" in text


def test_survives_json(batch: Batch) -> None:
    """What is stored is what is read back."""
    batch = batch.with_point(ended(8, Status.FAILED, 3.5, "why")).with_note("a note")
    assert convert(msgspec.to_builtins(batch), Batch, "batch") == batch


def test_its_json_is_that_of_batch_json(batch: Batch) -> None:
    """Folders of an earlier version are resumed, and an earlier version resumes ours."""
    batch = replace(batch, points=(ended(8, Status.FAILED, 3.5, "why"),), notes=("a note",))
    fields = msgspec.json.decode(msgspec.json.encode(batch))
    assert fields == {
        "isl": 1024,
        "osl": 1024,
        "mode": "submit",
        "started": STARTED,
        "points": [
            {
                "conc": 8,
                "tests": [],
                "status": "FAILED",
                "started": STARTED,
                "elapsed_s": 3.5,
                "reason": "why",
                "lost": False,
            }
        ],
        "notes": ["a note"],
    }
    del fields["points"][0]["lost"]
    assert convert(fields, Batch, "batch") == batch


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"isl": 0}, "ISL 0"),
        ({"mode": "fast"}, "batch, mode: .*'fast'"),
        ({"points": [{"conc": "4"}]}, "batch, point 1, conc: expected int, found '4'"),
        ({"started": None}, "batch, started: expected float, found null"),
    ],
    ids=str,
)
def test_fields_of_something_else_are_refused(batch: Batch, changed: dict[str, object], message: str) -> None:
    """The error names the point and the field."""
    with pytest.raises(ValueError, match=message):
        convert(msgspec.to_builtins(batch) | changed, Batch, "batch")


def test_note_is_said_once(batch: Batch) -> None:
    """The same note twice is one line."""
    assert batch.with_note("a").with_note("a").notes == ("a",)
