"""What mode submit does at the two ends of a session, without one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_dsr1.core.config import Mode, SweepConfig
from pytest_dsr1.journal import Journal
from pytest_dsr1.submission import Submission
from tests.batches import SCENARIO, finished_batch
from tests.servers.scripted_space import Reply, ScriptedSpace, event, scripted_space


class Sweep:
    """As far as a submission sees it."""

    begun = True
    measures = True

    def __init__(self, space: ScriptedSpace | None, *journals: Journal) -> None:
        url = None if space is None else space.url
        self.config = SweepConfig(
            scenarios=(SCENARIO,), mode=Mode.SUBMIT, team="Team", leaderboard_url=url, submit_timeout_s=5.0
        )
        self.journals = journals
        self._space = space
        self.requests_at_stop: int | None = None

    def stop_server(self) -> None:
        self.requests_at_stop = 0 if self._space is None else len(self._space.requests)

    def shown(self, folder: Path) -> str:
        return folder.name


def finish(sweep: Sweep, status: int = 0) -> tuple[int, str]:
    """Exit status of the session, and what its terminal shows."""
    submission = Submission(cast(Any, None), cast(Any, sweep), {})
    session, shown = SimpleNamespace(exitstatus=status), list[str]()
    submission.pytest_sessionfinish(cast(Any, session))
    submission.pytest_terminal_summary(cast(Any, SimpleNamespace(write_line=shown.append)))
    return session.exitstatus, "\n".join(shown)


def test_server_is_stopped_before_anybody_waits(tmp_path: Path) -> None:
    """Eight GPUs are not kept for a leaderboard that sleeps."""
    with scripted_space() as space:
        sweep = Sweep(space, finished_batch(tmp_path, space.url))
        status, shown = finish(sweep)
        assert sweep.requests_at_stop == 0
        assert space.count("POST") == 1
    assert status == 0
    assert f"submission to {space.url}" in shown


@pytest.mark.parametrize("status", [0, 1, 5])
def test_failed_submission_fails_the_session(status: int, tmp_path: Path) -> None:
    """After everything else; a session that failed already stays one."""
    with scripted_space(get=[event("error", '{"error": "closed"}')]) as space:
        found, shown = finish(Sweep(space, finished_batch(tmp_path, space.url, (4, 8))), status)
    assert found == 1
    assert "CONC 8: refused by the leaderboard: closed" in shown


def test_submission_goes_on_after_dash_x(tmp_path: Path) -> None:
    """What passed before the failure is sent."""
    with scripted_space() as space:
        status, _ = finish(Sweep(space, finished_batch(tmp_path, space.url)), pytest.ExitCode.TESTS_FAILED)
        assert (status, space.count("POST")) == (1, 1)


@pytest.mark.parametrize("status", [2, 3, 143], ids=["ctrl-c", "internal error", "sigterm"])
def test_interrupted_session_sends_nothing(status: int, tmp_path: Path) -> None:
    """The command that sends it is printed."""
    with scripted_space() as space:
        journal = finished_batch(tmp_path, space.url)
        found, shown = finish(Sweep(space, journal), status)
        assert space.requests == []
    assert found == status
    assert f"send what is pending with: pytest --submit-pending {journal.folder.name}" in shown


def test_ctrl_c_while_submitting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was on its way is unknown, what had to wait is pending, and the session was interrupted."""
    with scripted_space(post=[Reply(held=True)]) as space:
        sent: list[str] = []

        def interrupted(*_: object) -> None:
            sent.append("POST")
            raise KeyboardInterrupt

        monkeypatch.setattr("pytest_dsr1.leaderboard.client.Leaderboard._post", interrupted)
        status, shown = finish(Sweep(space, finished_batch(tmp_path, space.url, (4, 8))))
    assert (status, sent) == (2, ["POST"])
    assert "CONC 4: unknown: the process ended before there was an answer" in shown
    assert "CONC 8: pending: the session was interrupted" in shown


def test_no_leaderboard_is_no_error(tmp_path: Path) -> None:
    """There is none for these lengths: said before, said again, and noted."""
    journal = finished_batch(tmp_path, "")
    sweep = Sweep(None, journal)
    sweep.config = SweepConfig(scenarios=(SCENARIO,), mode=Mode.SUBMIT, team="Team")
    journal.batch = type(journal.batch)(
        scenario=type(SCENARIO)(16, 32), mode=Mode.SUBMIT, folder=journal.batch.folder, started=0.0
    )
    assert finish(sweep) == (0, "nothing to submit to: there is no leaderboard for ISL/OSL 16/32")
    assert "nothing to submit to" in (journal.folder / "summary.txt").read_text()


def test_offline_before_the_run_is_a_warning() -> None:
    """It will be tried again at the end."""
    with scripted_space() as space:
        pass
    sweep = Sweep(space)
    sweep.config = SweepConfig(
        scenarios=(SCENARIO,), mode=Mode.SUBMIT, team="T", leaderboard_url=space.url, submit_timeout_s=0.1
    )
    submission = Submission(cast(Any, None), cast(Any, sweep), {})
    submission.pytest_sessionstart()
    assert submission.pytest_report_header() == [
        "dsr1: WARNING the leaderboard cannot be asked now, and will be at the end: "
        f"{space.url} cannot be asked (ConnectionError)"
    ]
