"""The hooks of `hookspecs.py`, each implemented in a conftest and observed once."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.project import Project
from tests.servers.timed import TimedServer, timed_server

#: Every hook that is told something writes a line, in the order in which they are called.
CONFTEST = """
from pathlib import Path
from pytest_dsr1.core.evidence import reject
from pytest_dsr1.preflight import PreflightCheck

HEARD = Path(__file__).with_name("heard.txt")

def note(*words):
    with HEARD.open("a") as file:
        print(*words, file=file)

def pytest_dsr1_preflight(config, sweep):
    return [PreflightCheck(True, f"ready for {len(sweep.points)} points")]

def pytest_dsr1_refuse_server(why, reference, served):
    note("refuse?", reference, served and served.model)

def pytest_dsr1_batch_started(batch, folder):
    note("batch", batch.scenario)

def pytest_dsr1_load_started(point, served):
    note("load", point.id, served.model)

def pytest_dsr1_load_ended(point, served):
    note("load ended", point.id)
    return {"telemetry": {"watts": [300, 310]}}

def pytest_dsr1_checks(config):
    def too_many_tokens(evidence):
        if evidence.number("benchmark_args.max_concurrency") == 4:
            yield reject("own", "conc 4 is not wanted")
    return [too_many_tokens]

def pytest_dsr1_point_ended(point, state, result):
    note("point", point.id, state.status, result.passed)

def pytest_dsr1_batch_ended(batch, folder):
    note("batch ended", (folder / "batch.json").exists(), [str(one.status) for one in batch.points])
"""
SWEEP = ("--isl", "8", "--osl", "1", "--conc", "2,4", "--num-prompts", "4", "--accuracy", "off")


@pytest.fixture(scope="module")
def server() -> Iterator[TimedServer]:
    with timed_server(ttft_s=0.002) as started:
        yield started


def heard(project: Project) -> list[str]:
    return (project.folder / "heard.txt").read_text().splitlines()


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["serial", "worker"])
def test_each_hook_is_called(project: Project, server: TimedServer, workers: tuple[str, ...]) -> None:
    """In the order of the sweep; what they return is in the result."""
    project.write("conftest.py", CONFTEST)
    outcome = project.run(*SWEEP, "--server-url", server.url, *workers)
    assert outcome.status == 1, outcome
    expected = [
        "refuse? False None",
        "refuse? False scripted",
        "batch 8/1",
        "load isl8-osl1-conc2 scripted",
        "load ended isl8-osl1-conc2",
        "point isl8-osl1-conc2 PASSED True",
        "load isl8-osl1-conc4 scripted",
        "load ended isl8-osl1-conc4",
        "point isl8-osl1-conc4 FAILED False",
        "batch ended True ['PASSED', 'FAILED']",
    ]
    # A worker and the process that owns the session do not wait for each other.
    assert heard(project) == expected if not workers else sorted(heard(project)) == sorted(expected)
    result = json.loads((project.batch / "result_isl8_osl1_conc4.json").read_text())
    assert result["extra"] == {"telemetry": {"watts": [300, 310]}}
    assert [finding["check"] for finding in result["validation"]["findings"]] == ["own"]
    assert "own: conc 4 is not wanted" in project.lines()[1]


def test_preflight_of_a_plugin(project: Project, server: TimedServer) -> None:
    """--preflight shows what it found; in a sweep, what did not pass is a usage error."""
    url = ("--server-url", server.url)
    project.write("conftest.py", CONFTEST)
    outcome = project.run(*SWEEP, *url, "--preflight")
    assert outcome.status == 0, outcome
    assert "ok     ready for 2 points" in outcome.output
    project.write("conftest.py", CONFTEST.replace('PreflightCheck(True, f"ready', 'PreflightCheck(False, f"not ready'))
    assert project.run(*SWEEP, *url, "--preflight").status == 1
    outcome = project.run(*SWEEP, *url)
    assert outcome.status == 4, outcome
    assert "not ready for 2 points" in outcome.output
    assert not project.batches


@pytest.mark.parametrize("condition", ["served is None", "served is not None"], ids=["chosen", "answered"])
def test_server_is_refused(project: Project, server: TimedServer, condition: str) -> None:
    """With the reason that the hook gives, before a batch exists."""
    project.write("conftest.py", f"def pytest_dsr1_refuse_server(served): return 'too warm' if {condition} else None")
    outcome = project.run(*SWEEP, "--server-url", server.url)
    assert outcome.status == 4, outcome
    assert "too warm" in outcome.output
    assert not project.batches


def test_hooks_do_not_need_the_plugin(project: Project) -> None:
    """With `optionalhook` a conftest works where the plugin is switched off; without, it works where it is not."""
    project.write("test_his.py", "def test_his(): pass")
    project.write("conftest.py", "def pytest_dsr1_checks(config): return []")
    assert project.run().status == 0
    project.write(
        "conftest.py",
        "import pytest",
        "@pytest.hookimpl(optionalhook=True)",
        "def pytest_dsr1_checks(config): return []",
    )
    assert project.run("-p", "no:pytest_dsr1.plugin").status == 0
