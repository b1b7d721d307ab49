"""A sweep that a signal ends: its folder says what was measured, and --resume measures the rest."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager

import psutil
import pytest

from tests.project import Project, wait_until
from tests.servers.timed import TimedServer, timed_server

#: One token for each request: figures of the time per token depend on how busy the machine is.
SWEEP = ("--isl", "16", "--osl", "1", "--accuracy", "off", "--num-prompts", "20", "--conc", "1,2,4")
#: Requests of the three points, warm-ups included.
REQUESTS = (22, 24, 28)
#: A request of the second point, by its number. It is never answered, so that the point cannot end before the signal.
STUCK = REQUESTS[0] + 8


@pytest.fixture
def server() -> Iterator[TimedServer]:
    """A server that answers every request."""
    with timed_server(ttft_s=0.002) as server:
        yield server


def stuck_server(number: int = STUCK) -> AbstractContextManager[TimedServer]:
    """A server that never answers the request with this number."""
    return timed_server(ttft_s=0.002, answers={number: {"stall_at": 0}})


def count(server: TimedServer) -> int:
    """How many requests the server has received."""
    return len(server.truth()["requests"])


def statuses(project: Project) -> list[str]:
    """The status of each point, without times."""
    return [re.sub(r"( \(\d+s\)| [\d:]+$)", "", line.partition(": ")[2]) for line in project.lines()]


def results(project: Project) -> dict[str, str]:
    """Name and content of every result."""
    return {path.name: path.read_text() for path in sorted(project.batch.glob("result_*.json"))}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 2), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_interrupted_in_the_second_point(project: Project, number: signal.Signals, status: int) -> None:
    """The first point counts, the second says INTERRUPTED; a resumed sweep measures only what is missing."""
    with stuck_server() as server:
        process = project.start(*SWEEP, "--server-url", server.url)
        wait_until(lambda: count(server) > STUCK, "the second point is measured")
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == status, output
        assert statuses(project) == ["PASSED", "INTERRUPTED", "NOT RUN"], output
        assert list(results(project)) == ["result_isl16_osl1_conc1.json"]
        assert "Multi-Concurrency Test Incomplete!" in project.summary()
        assert "Traceback" not in output
        wait_until(lambda: server.truth()["open"] == 1, "connections closed")
        first, started, before = results(project), project.summary().splitlines()[3], count(server)

        outcome = project.run("--resume", str(project.batch))
        assert outcome.status == 0, outcome
        assert statuses(project) == ["PASSED"] * 3
        assert count(server) - before == sum(REQUESTS[1:])
    assert first.items() <= results(project).items()
    assert project.summary().splitlines()[3] == started
    assert len(project.batches) == 1


def test_resumed_when_nothing_is_missing(project: Project, server: TimedServer) -> None:
    """A complete batch is left as it is; the exit status is what the batch says."""
    project.run(*SWEEP, "--server-url", server.url)
    summary, before = project.summary(), count(server)
    outcome = project.run("--resume", str(project.batch))
    assert outcome.status == 0, outcome
    assert project.summary() == summary
    assert count(server) == before


def test_one_point_of_a_batch_again(project: Project, server: TimedServer) -> None:
    """-k conc2 with --resume replaces that one and no other."""
    project.run(*SWEEP, "--server-url", server.url)
    first = results(project)
    outcome = project.run("--resume", str(project.batch), "-k", "conc2")
    assert outcome.status == 0, outcome
    again = results(project)
    assert {name for name in first if first[name] != again[name]} == {"result_isl16_osl1_conc2.json"}
    assert statuses(project) == ["PASSED"] * 3


def test_resumed_failure_still_fails(project: Project) -> None:
    """A batch in which a point failed does not pass because the rest was completed."""
    with timed_server(answers={5: {"status": 500}}, ttft_s=0.002) as server:
        project.run(*SWEEP, "--server-url", server.url, "-x")
        outcome = project.run("--resume", str(project.batch))
    assert outcome.status == 1, outcome
    assert [words.partition(" ")[0] for words in statuses(project)] == ["FAILED", "PASSED", "PASSED"]


def test_contradicting_option_is_refused(project: Project, server: TimedServer) -> None:
    """A resumed batch is measured with the options that it was begun with."""
    project.run(*SWEEP, "--server-url", server.url, "--conc", "1")
    outcome = project.run("--resume", str(project.batch), "--num-prompts", "21")
    assert outcome.status == 4, outcome
    assert re.search("--num-prompts.*21.*20", outcome.output)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(3, ["STARTED", "NOT RUN", "NOT RUN"]), (STUCK, ["PASSED", "STARTED", "NOT RUN"])],
    ids=["first point", "second point"],
)
def test_killed(project: Project, number: int, expected: list[str]) -> None:
    """After SIGKILL the summary is true. A resumed sweep completes it and measures nothing twice."""
    with stuck_server(number) as server:
        process = project.start(*SWEEP, "--server-url", server.url)
        wait_until(lambda: count(server) > number, "the point is measured")
        process.kill()
        process.communicate(timeout=60)
        assert statuses(project) == expected
        finished, before = results(project), count(server)
        assert len(finished) == expected.count("PASSED")
        assert all(json.loads(text)["verdict"]["status"] == "PASSED" for text in finished.values())

        outcome = project.run("--resume", str(project.batch))
        assert outcome.status == 0, outcome
        assert count(server) - before == sum(REQUESTS[len(finished) :])
    assert statuses(project) == ["PASSED"] * 3
    assert "Multi-Concurrency Test Complete!" in project.summary()
    assert finished.items() <= results(project).items()


def test_embedded_engine_does_not_outlive_sigkill(project: Project) -> None:
    """The kernel closes a pipe that the engine reads from, however pytest ends."""
    process = project.start("--isl", "16", "--osl", "64", "--conc", "1", "--accuracy", "off", "--engine", "reference")
    engines: list[psutil.Process] = []

    def engine_runs() -> bool:
        engines[:] = psutil.Process(process.pid).children()
        return bool(engines) and (project.folder / "reports" / "latest" / "summary.txt").exists()

    wait_until(engine_runs, "the engine started")
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(engines, timeout=60)
    assert not alive
