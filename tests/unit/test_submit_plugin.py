"""Mode submit at the beginning and at the end of a session, without a session."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_dsr1.batch.journal import Journal
from pytest_dsr1.core.config import Mode, SweepConfig
from pytest_dsr1.core.result import Result
from pytest_dsr1.submit.plugin import SubmitPlugin, with_hook
from tests.batches import SCENARIO, finished_batch
from tests.servers.scripted_space import Reply, ScriptedSpace, event, scripted_space


class FakeSweep:
    """A sweep as far as mode submit sees it."""

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


def finish(sweep: FakeSweep, status: int = 0) -> tuple[int, str]:
    """Exit status of the session, and what its terminal shows."""
    plugin = SubmitPlugin(sweep, {})
    session, shown = SimpleNamespace(exitstatus=status), list[str]()
    plugin.pytest_sessionfinish(cast(Any, session))
    plugin.pytest_terminal_summary(cast(Any, SimpleNamespace(write_line=shown.append)))
    return session.exitstatus, "\n".join(shown)


def test_server_is_stopped_before_anybody_waits(tmp_path: Path) -> None:
    """GPUs are not kept busy while a leaderboard is waited for."""
    with scripted_space() as space:
        sweep = FakeSweep(space, finished_batch(tmp_path, space.url))
        status, shown = finish(sweep)
        assert sweep.requests_at_stop == 0
        assert space.count("POST") == 1
    assert status == 0
    assert f"submission to {space.url}" in shown


@pytest.mark.parametrize("status", [0, 1, 5])
def test_failed_submission_fails_the_session(status: int, tmp_path: Path) -> None:
    """An exit status of success becomes failure; failure stays failure."""
    with scripted_space(get=[event("error", '{"error": "closed"}')]) as space:
        found, shown = finish(FakeSweep(space, finished_batch(tmp_path, space.url, (4, 8))), status)
    assert found == 1
    assert "CONC 8: refused by the leaderboard: closed" in shown


def test_submission_goes_on_after_dash_x(tmp_path: Path) -> None:
    """Points that passed before the failure are sent."""
    with scripted_space() as space:
        status, _ = finish(FakeSweep(space, finished_batch(tmp_path, space.url)), pytest.ExitCode.TESTS_FAILED)
        assert (status, space.count("POST")) == (1, 1)


@pytest.mark.parametrize("status", [2, 3, 143], ids=["ctrl-c", "internal error", "sigterm"])
def test_interrupted_session_sends_nothing(status: int, tmp_path: Path) -> None:
    """The command that sends the rest is printed."""
    with scripted_space() as space:
        journal = finished_batch(tmp_path, space.url)
        found, shown = finish(FakeSweep(space, journal), status)
        assert space.requests == []
    assert found == status
    assert f"send what is pending with: pytest --submit-pending {journal.folder.name}" in shown


def test_ctrl_c_while_submitting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row being sent is unknown, the others are pending, the status is 2."""
    with scripted_space(post=[Reply(held=True)]) as space:
        sent: list[str] = []

        def interrupted(*_: object) -> None:
            sent.append("POST")
            raise KeyboardInterrupt

        monkeypatch.setattr("pytest_dsr1.submit.client.Leaderboard._post", interrupted)
        status, shown = finish(FakeSweep(space, finished_batch(tmp_path, space.url, (4, 8))))
    assert (status, sent) == (2, ["POST"])
    assert "CONC 4: unknown: " in shown
    assert "CONC 8: pending: the session was interrupted" in shown


def test_no_leaderboard_is_no_error(tmp_path: Path) -> None:
    """Lengths without a leaderboard: terminal and summary say so."""
    journal = finished_batch(tmp_path, "")
    sweep = FakeSweep(None, journal)
    sweep.config = SweepConfig(scenarios=(SCENARIO,), mode=Mode.SUBMIT, team="Team")
    journal.batch = type(journal.batch)(isl=16, osl=32, mode=Mode.SUBMIT, started=0.0)
    status, shown = finish(sweep)
    assert status == 0
    assert "ISL/OSL 16/32" in shown
    assert shown in (journal.folder / "summary.txt").read_text()


def test_offline_before_the_run_is_a_warning() -> None:
    """It is asked again at the end."""
    with scripted_space() as space:
        pass
    sweep = FakeSweep(space)
    sweep.config = SweepConfig(
        scenarios=(SCENARIO,), mode=Mode.SUBMIT, team="T", leaderboard_url=space.url, submit_timeout_s=0.1
    )
    plugin = SubmitPlugin(sweep, {})
    plugin.pytest_sessionstart()
    (line,) = plugin.pytest_report_header()
    assert line.startswith("dsr1: WARNING")
    assert line.endswith(f"{space.url} cannot be reached (ConnectionError)")


def test_another_plugin_objects(tmp_path: Path) -> None:
    """A plugin's `pytest_dsr1_objections` keeps a result back; the summary says why."""

    def objections(config: pytest.Config, result: Result, loopback: bool) -> list[list[str]]:
        assert result.benchmark_args is not None
        conc = result.benchmark_args.max_concurrency
        return [[], [f"throttled, loopback={loopback}"]] if conc == 8 else []

    config = cast(pytest.Config, SimpleNamespace(hook=SimpleNamespace(pytest_dsr1_objections=objections)))
    with scripted_space() as space:
        journal = finished_batch(tmp_path, space.url, (4, 8))
        plugin = SubmitPlugin(FakeSweep(space, journal), {}, with_hook(config))
        session = SimpleNamespace(exitstatus=0)
        plugin.pytest_sessionfinish(cast(pytest.Session, session))
        assert space.count("POST") == 1
    assert session.exitstatus == 1
    assert "CONC=8: refused: throttled, loopback=True" in (journal.folder / "summary.txt").read_text()
