"""Several servers, a worker for each: the same results as one after the other, and no server measured by two."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.project import Project, wait_until
from tests.scoring import scoring_server, with_baseline
from tests.servers.timed import TimedServer, timed_server

SWEEP = ("--scenario", "16/1,8/1", "--accuracy", "off", "--num-prompts", "20", "--conc", "1,2,4", "--prompt-seed", "7")
#: Warm-ups included.
REQUESTS = {1: 22, 2: 24, 4: 28}


@pytest.fixture
def pair() -> Iterator[tuple[TimedServer, TimedServer]]:
    with timed_server(ttft_s=0.002) as one, timed_server(ttft_s=0.002) as other:
        yield one, other


def urls(*servers: TimedServer) -> tuple[str, ...]:
    return tuple(word for server in servers for word in ("--server-url", server.url))


def results(project: Project) -> dict[str, dict[str, Any]]:
    """Every result of the newest batches, by file name."""
    return {
        path.name: json.loads(path.read_text())
        for batch in project.batches
        for path in sorted(batch.glob("result_*.json"))
    }


def lasting(result: dict[str, Any]) -> dict[str, Any]:
    """What two runs of one sweep have in common, whatever the time and whichever the server."""
    arguments = {name: value for name, value in result["benchmark_args"].items() if name != "base_url"}
    return {
        "benchmark_args": arguments | {"vocab_source": ""},
        "tokens": (result["total_input_tokens"], result["total_generated_tokens"], result["successful_requests"]),
        "verdict": result["verdict"],
        "findings": result["validation"],
    }


def test_the_same_results_as_one_after_the_other(
    project: Project, tmp_path_factory: pytest.TempPathFactory, pair: tuple[TimedServer, TimedServer]
) -> None:
    """A batch folder for each scenario, with the same points and prompts. Each point is measured on one server."""
    parallel = project.run(*SWEEP, *urls(*pair), "-n", "2")
    assert parallel.status == 0, parallel
    serial_project = Project(tmp_path_factory.mktemp("serial"))
    with timed_server(ttft_s=0.002) as server:
        serial = serial_project.run(*SWEEP, "--server-url", server.url)
    assert serial.status == 0, serial

    assert len(project.batches) == len(serial_project.batches) == 2
    got, expected = results(project), results(serial_project)
    assert {name: lasting(result) for name, result in got.items()} == {
        name: lasting(result) for name, result in expected.items()
    }
    assert {result["server"]["concurrent_servers"] for result in got.values()} == {2}
    assert {result["server"]["concurrent_servers"] for result in expected.values()} == {1}
    truths = [server.truth() for server in pair]
    counts = [len(truth["requests"]) for truth in truths]
    assert sum(counts) == 2 * sum(REQUESTS.values())
    assert all(counts)
    # Two points at once on a server would have more.
    assert all(truth["in_flight"] <= max(REQUESTS) for truth in truths)
    assert {result["server"]["url"] for result in got.values()} == {server.url for server in pair}
    for batch, other in zip(project.batches, serial_project.batches, strict=True):
        lines = [_without_times(folder / "summary.txt") for folder in (batch, other)]
        assert lines[0] == lines[1]


def _without_times(summary: Path) -> list[str]:
    return [line.partition(" (")[0] for line in summary.read_text().splitlines() if line.startswith("[")]


def test_accuracy_and_performance_on_one_server(project: Project) -> None:
    """Both tests of a concurrency run in one worker; no accuracy is measured twice."""
    gate = with_baseline(project, None)
    engine = {"engine": "pytest-dsr1-reference"}
    with scoring_server(**engine) as one, scoring_server(**engine) as other:
        args = ("--isl", "16", "--osl", "1", "--conc", "1,2", "--num-prompts", "8")
        outcome = project.run(*args, *gate, *urls(one, other), "-n", "auto", "-v")
    assert outcome.status == 0, outcome
    assert {result["server"]["url"] for result in results(project).values()} == {one.url, other.url}
    by_test = {test: worker for worker, test in re.findall(r"\[(gw\d)\].* PASSED (\S+)", outcome.output)}
    for conc in (1, 2):
        tests = [f"tests_bench/test_sweep.py::{test}[isl16-osl1-conc{conc}]" for test in ("test_accuracy", "test_perf")]
        assert by_test[tests[0]] == by_test[tests[1]]


def test_fewer_workers_than_servers(project: Project, pair: tuple[TimedServer, TimedServer]) -> None:
    """A server without a worker is left alone; -k selects the same tests as without workers."""
    outcome = project.run(*SWEEP, *urls(*pair), "-n", "1", "-k", "conc2")
    assert outcome.status == 0, outcome
    assert sorted(results(project)) == ["result_isl16_osl1_conc2.json", "result_isl8_osl1_conc2.json"]
    assert [len(server.truth()["requests"]) for server in pair] == [2 * REQUESTS[2], 0]
    assert {result["server"]["concurrent_servers"] for result in results(project).values()} == {1}


@pytest.mark.parametrize(
    ("servers", "workers", "message"),
    [
        (2, ("-n", "3"), "-n 3: two workers on one server would measure each other, and there are 2"),
        (2, (), "--server-url was typed 2 times, and one process measures one server; add -n auto"),
        (1, ("-n", "2"), "-n 2: two workers on one server would measure each other, and there is one"),
    ],
)
def test_numbers_that_do_not_fit(
    project: Project, pair: tuple[TimedServer, TimedServer], servers: int, workers: tuple[str, ...], message: str
) -> None:
    """A usage error before anything runs."""
    outcome = project.run(*SWEEP, *urls(*pair[:servers]), *workers)
    assert outcome.status == 4, outcome
    assert message in outcome.output
    assert not (project.folder / "reports").exists()


def test_servers_of_different_models(project: Project) -> None:
    """One sweep measures one model."""
    with timed_server() as one, timed_server(model="another") as other:
        outcome = project.run(*SWEEP, *urls(one, other), "-n", "2")
    assert outcome.status == 4, outcome
    assert f"{one.url} serves scripted (external) and {other.url} another (external)" in outcome.output


def test_strangers_tests_are_distributed_as_ever(project: Project) -> None:
    """Without a sweep, -n is xdist's own."""
    (project.folder / "test_his.py").write_text(
        "import pytest\n@pytest.mark.parametrize('n', range(8))\ndef test_his(n): pass\n"
    )
    outcome = project.run("-n", "2", "-v")
    assert outcome.status == 0, outcome
    assert {"[gw0]", "[gw1]"} <= set(outcome.output.split())


def test_interrupted_and_resumed(project: Project) -> None:
    """What both workers had finished counts, and one worker measures the rest."""
    # Each server finishes a point, whichever it is, and gets stuck in its second one.
    stuck = {max(REQUESTS.values()) + 1: {"stall_at": 0}}
    with (
        timed_server(ttft_s=0.002, answers=stuck) as one,
        timed_server(ttft_s=0.002, answers=stuck) as other,
    ):
        process = project.start(*SWEEP, *urls(one, other), "-n", "2")
        wait_until(lambda: all(_is_reached(server, max(stuck)) for server in (one, other)), "both are stuck")
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2, output
        finished = results(project)
        assert len(finished) >= 2
        again = [word for batch in project.batches for word in ("--resume", str(batch))]
        outcome = project.run(*again, "-n", "1")
        assert outcome.status == 0, outcome
    assert len(results(project)) == 6
    assert finished.items() <= results(project).items()


def _is_reached(server: TimedServer, number: int) -> bool:
    return len(server.truth()["requests"]) > number


def test_a_worker_that_crashes_has_a_successor(project: Project) -> None:
    """It gets the same server and does what is left; the point under way has failed."""
    stuck = REQUESTS[1] + 5
    with timed_server(ttft_s=0.002, answers={stuck: {"stall_at": 0}}) as server:
        process = project.start(*SWEEP, "--scenario", "16/1", *urls(server), "-n", "1")
        wait_until(lambda: _is_reached(server, stuck), "the second point is measured")
        (worker,) = psutil.Process(process.pid).children()
        worker.kill()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert [line.split()[3] for line in project.lines()] == ["CONC=1:", "CONC=2:", "CONC=4:"]
    assert [line.split()[4] for line in project.lines()] == ["PASSED", "FAILED", "PASSED"]
    # The point that failed is not measured a second time.
    assert sorted(results(project)) == ["result_isl16_osl1_conc1.json", "result_isl16_osl1_conc4.json"]


def test_a_server_that_dies_ends_the_sweep(project: Project) -> None:
    """The other worker finishes its point; the rest is not run, and the exit status is 1."""
    with timed_server(ttft_s=0.002) as one, timed_server(ttft_s=0.002, dies_at=5) as other:
        outcome = project.run(*SWEEP, *urls(one, other), "-n", "2")
    assert outcome.status == 1, outcome
    assert f"nobody listens at {other.url} any more" in outcome.output
    lines = [line for batch in project.batches for line in _without_times(batch / "summary.txt")]
    assert sum("FAILED" in line for line in lines) == 1
