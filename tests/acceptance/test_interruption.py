"""Whatever ends a sweep, its folder tells the truth, and --resume completes it."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project import Project, wait_until
from tests.servers.timed import TimedServer, timed_server

#: One token each: a stall of this machine cannot make a figure impossible, and so fail a point.
SWEEP = ("--isl", "16", "--osl", "1", "--accuracy", "off", "--num-prompts", "20", "--conc", "1,2,4")
#: Requests of the three points, warm-ups included.
REQUESTS = (22, 24, 28)


@pytest.fixture
def server() -> Iterator[TimedServer]:
    with timed_server(ttft_s=0.01) as server:
        yield server


def start(project: Project, server: TimedServer, *args: str) -> subprocess.Popen[str]:
    return project.start(*SWEEP, "--server-url", server.url, *args)


def wait_for_requests(server: TimedServer, count: int) -> None:
    wait_until(lambda: len(server.truth()["requests"]) >= count, f"{count} requests")


def statuses(project: Project) -> list[str]:
    """The words of the points' lines, without times."""
    return [re.sub(r"( \(\d+s\)| [\d:]+$)", "", line.partition(": ")[2]) for line in project.lines()]


def results(project: Project) -> dict[str, str]:
    """Name and content of every result."""
    return {path.name: path.read_text() for path in sorted(project.batch.glob("result_*.json"))}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 2), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_interrupted_in_the_second_point(
    project: Project, server: TimedServer, number: signal.Signals, status: int
) -> None:
    """What was finished is there, what was under way says so, and every connection is closed."""
    process = start(project, server)
    wait_for_requests(server, REQUESTS[0] + 8)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    assert statuses(project) == ["PASSED", "INTERRUPTED", "NOT RUN"], output
    assert list(results(project)) == ["result_isl16_osl1_conc1.json"]
    assert "Multi-Concurrency Test Incomplete!" in project.summary()
    assert "Traceback" not in output
    wait_until(lambda: server.truth()["open"] == 1, "connections closed")


def test_resumed_after_an_interruption(project: Project, server: TimedServer) -> None:
    """Only what is missing is measured, and the summary is that of an uninterrupted run but for times."""
    process = start(project, server)
    wait_for_requests(server, REQUESTS[0] + 8)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    first, started = results(project), project.summary().splitlines()[3]
    before = len(server.truth()["requests"])

    outcome = project.run("--resume", str(project.batch))
    assert outcome.status == 0, outcome
    assert statuses(project) == ["PASSED"] * 3
    assert len(server.truth()["requests"]) - before == sum(REQUESTS[1:])
    assert first.items() <= results(project).items()
    assert project.summary().splitlines()[3] == started
    assert len(project.batches) == 1


def test_resumed_when_nothing_is_missing(project: Project, server: TimedServer) -> None:
    """A complete batch is left as it is; the exit status is what it says of itself."""
    process = start(project, server)
    process.communicate(timeout=60)
    summary, before = project.summary(), len(server.truth()["requests"])
    outcome = project.run("--resume", str(project.batch))
    assert outcome.status == 0, outcome
    assert project.summary() == summary
    assert len(server.truth()["requests"]) == before


def test_one_point_of_a_batch_again(project: Project, server: TimedServer) -> None:
    """-k conc2 with --resume replaces that one and no other."""
    start(project, server).communicate(timeout=60)
    first = results(project)
    outcome = project.run("--resume", str(project.batch), "-k", "conc2")
    assert outcome.status == 0, outcome
    again = results(project)
    changed = {name for name in first if first[name] != again[name]}
    assert changed == {"result_isl16_osl1_conc2.json"}
    assert statuses(project) == ["PASSED"] * 3


def test_resumed_failure_still_fails(project: Project) -> None:
    """A batch in which a point failed is not green because the rest was completed."""
    with timed_server(answers={5: {"status": 500}}, ttft_s=0.01) as server:
        process = start(project, server)
        wait_for_requests(server, REQUESTS[0] + 8)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        outcome = project.run("--resume", str(project.batch))
    assert outcome.status == 1, outcome
    assert [words.partition(" ")[0] for words in statuses(project)] == ["FAILED", "PASSED", "PASSED"]


def test_contradicting_option_is_refused(project: Project, server: TimedServer) -> None:
    """A resumed batch is measured as it was begun."""
    start(project, server).communicate(timeout=60)
    outcome = project.run("--resume", str(project.batch), "--num-prompts", "21")
    assert outcome.status == 4, outcome
    assert "--num-prompts: '21' contradicts the resumed batch, which has '20'" in outcome.output


# Fixed seeds, so that a failure comes again; the moments are spread over the whole sweep.
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_a_random_moment(project: Project, server: TimedServer, seed: int) -> None:
    """After SIGKILL the summary is true; resumed, it is complete, and nothing finished was lost or repeated."""
    process = start(project, server)
    wait_for_requests(server, random.Random(seed).randint(1, sum(REQUESTS)))
    process.kill()
    process.communicate(timeout=60)

    before = statuses(project)
    finished = {name: text for name, text in results(project).items() if _is_finished(text)}
    passed = before.count("PASSED")
    assert before == (["PASSED"] * passed + ["STARTED"] + ["NOT RUN"] * 2)[:3], "one after the other"
    # A result is written before its line is; the line says no more than what is on disk.
    assert passed <= len(finished) <= passed + 1
    sent = len(server.truth()["requests"])

    outcome = project.run("--resume", str(project.batch))
    assert outcome.status == 0, outcome
    assert statuses(project) == ["PASSED"] * 3
    assert "Multi-Concurrency Test Complete!" in project.summary()
    assert finished.items() <= results(project).items()
    assert len(server.truth()["requests"]) - sent == sum(REQUESTS[len(finished) :])
    assert not list(project.batch.glob(".*.partial"))


def _is_finished(text: str) -> bool:
    return bool(json.loads(text)["verdict"]["status"] in ("PASSED", "FAILED"))


def test_embedded_engine_does_not_outlive_sigkill(project: Project) -> None:
    """Its life line is a pipe that the kernel closes, however pytest went."""
    process = project.start("--isl", "16", "--osl", "64", "--conc", "1", "--accuracy", "off", "--engine", "reference")
    engines: list[int] = []

    def engine_runs() -> bool:
        engines[:] = _children(process.pid)
        return bool(engines) and (project.folder / "reports" / "latest" / "summary.txt").exists()

    wait_until(engine_runs, "the engine started")
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not any(_is_alive(pid) for pid in engines), "the engine ended")


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()] if tasks.exists() else []


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie waits for a parent that is gone.
    return " Z " not in Path(f"/proc/{pid}/stat").read_text()
