"""A user's own tests and servers: the `dsr1_*` fixtures and the ways to bring a server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.project import Project
from tests.servers.timed import TimedServer, timed_server

QUICK = ("--accuracy", "off", "--num-prompts", "4")
LENGTHS = ("--isl", "8", "--osl", "1")


@pytest.fixture(scope="module")
def server() -> Iterator[TimedServer]:
    with timed_server(ttft_s=0.002) as started:
        yield started


@pytest.fixture
def on_server(server: TimedServer) -> tuple[str, ...]:
    return (*QUICK, "--server-url", server.url)


# -- own tests --------------------------------------------------------------------------------------------------------


def test_lengths_in_the_call(project: Project, server: TimedServer, on_server: tuple[str, ...]) -> None:
    """Nothing but the path is typed: the call names the point, and its result is a value with attributes."""
    project.write(
        "test_slo.py",
        "from pytest_dsr1 import Point, Result, Scenario",
        "def test_slo(dsr1_load):",
        "    run = dsr1_load(isl=8, osl=1, conc=2)",
        "    assert run.ttft_ms.p99 < 60_000 and run.output_throughput > 0",
        "    assert isinstance(run, Result) and run.passed and run.point == Point(Scenario(8, 1), 2)",
        "    assert dsr1_load(isl=8, osl=1, conc=2).ttft_ms == run.ttft_ms",
        "    print(repr(run))",
    )
    before = len(server.truth()["requests"])
    outcome = project.run("test_slo.py", *on_server, "-s")
    assert outcome.status == 0, outcome
    # 4 measured, 4 to warm up; what was measured once is not measured again.
    assert len(server.truth()["requests"]) - before == 8
    assert "Result(isl8-osl1-conc2 PASSED: " in outcome.output
    assert [line.partition(" (")[0] for line in project.lines()] == ["[1/1] ISL=8 OSL=1 CONC=2: PASSED"]
    result = json.loads((project.batch / "result_isl8_osl1_conc2.json").read_text())
    assert result["successful_requests"] == 4


def test_lengths_on_the_command_line(project: Project, on_server: tuple[str, ...]) -> None:
    """What the call does not name is taken from --isl, --osl and --conc."""
    project.write(
        "test_slo.py",
        "def test_given(dsr1_load): assert dsr1_load(conc=4).point.id == 'isl8-osl1-conc4'",
        "def test_typed(dsr1_load): assert dsr1_load().point.id == 'isl8-osl1-conc2'",
        "def test_other(dsr1_load): assert dsr1_load(isl=16, osl=1).point.id == 'isl16-osl1-conc2'",
        "def test_his(): pass",
    )
    outcome = project.run("test_slo.py", *on_server, *LENGTHS, "--conc", "2")
    assert outcome.status == 0, outcome
    assert "4 passed" in outcome.output
    states = sorted(line.split(": ")[1][:6] for folder in project.batches for line in _lines(folder.name, project))
    assert states == ["PASSED"] * 3


def _lines(batch: str, project: Project) -> list[str]:
    text = (project.folder / "reports" / batch / "summary.txt").read_text()
    return [line for line in text.splitlines() if line.startswith("[")]


@pytest.mark.parametrize(
    ("call", "names"),
    [("dsr1_load()", "--isl"), ("dsr1_load(isl=8, conc=2)", "--isl"), ("dsr1_load(isl=8, osl=1)", "--conc")],
    ids=["nothing", "one length", "no concurrency"],
)
def test_point_that_nobody_names(project: Project, on_server: tuple[str, ...], call: str, names: str) -> None:
    """The test fails with what to type."""
    project.write("test_slo.py", f"def test_slo(dsr1_load): {call}")
    outcome = project.run("test_slo.py", *on_server)
    assert outcome.status == 1, outcome
    assert names in outcome.output.partition("UsageError")[2]


def test_a_point_for_each_of_the_sweep(project: Project, on_server: tuple[str, ...]) -> None:
    """`dsr1_point` parametrises a test by the points that were typed; without lengths it is skipped."""
    project.write(
        "test_slo.py",
        "def test_each(dsr1_point, dsr1_load): assert dsr1_load().point == dsr1_point",
    )
    outcome = project.run("test_slo.py", *on_server, *LENGTHS, "--conc", "2,4", "-v")
    assert outcome.status == 0, outcome
    assert "test_slo.py::test_each[isl8-osl1-conc4] PASSED" in outcome.output
    assert len(project.lines()) == 2
    without = project.run("test_slo.py", *on_server)
    assert without.status == 0, without
    assert "5 skipped" in without.output
    assert "--isl 1024 --osl 1024" in without.output


def test_points_of_ones_own(project: Project, on_server: tuple[str, ...]) -> None:
    """A test that parametrises `dsr1_point` itself is measured at its points, without lengths on the command line."""
    project.write(
        "test_slo.py",
        "import pytest",
        "from pytest_dsr1 import Point, Scenario",
        "@pytest.mark.parametrize('dsr1_point', [Point(Scenario(8, 1), conc) for conc in (2, 3)], ids=lambda p: p.id)",
        "def test_mine(dsr1_point, dsr1_load): assert dsr1_load().point == dsr1_point",
    )
    for lengths in ((), (*LENGTHS, "--conc", "4")):
        outcome = project.run("test_slo.py", *on_server, *lengths)
        assert outcome.status == 0, outcome
        assert "2 passed" in outcome.output
        assert [line.partition(" (")[0] for line in project.lines()] == [
            "[1/2] ISL=8 OSL=1 CONC=2: PASSED",
            "[2/2] ISL=8 OSL=1 CONC=3: PASSED",
        ]


def test_own_tests_in_a_worker(project: Project, on_server: tuple[str, ...]) -> None:
    """Points that the sweep has are measured; of one that the call names the session would know nothing."""
    project.write(
        "test_slo.py",
        "def test_each(dsr1_point, dsr1_load): assert dsr1_load().passed",
        "def test_named(dsr1_load): dsr1_load()",
    )
    outcome = project.run("test_slo.py", *on_server, *LENGTHS, "--conc", "2", "-n", "1")
    assert outcome.status == 1, outcome
    assert "1 failed, 1 passed" in outcome.output
    assert "test_slo.py::test_named measures isl8-osl1-conc2" in outcome.output
    assert "drop -n" in outcome.output
    assert [line.partition(" (")[0] for line in project.lines()] == ["[1/1] ISL=8 OSL=1 CONC=2: PASSED"]


def test_failed_assertion_shows_the_result(project: Project, on_server: tuple[str, ...]) -> None:
    """The point has failed, with the assertion as its reason, and the exit status is 1."""
    project.write(
        "test_slo.py", "def test_slo(dsr1_load):", "    run = dsr1_load(isl=8, osl=1, conc=2)", "    assert not run"
    )
    outcome = project.run("test_slo.py", *on_server)
    assert outcome.status == 1, outcome
    assert "assert not Result(isl8-osl1-conc2 PASSED: " in outcome.output
    assert "CONC=2: FAILED" in project.summary()


def test_resumed_with_its_path(project: Project, on_server: tuple[str, ...]) -> None:
    """The command that is printed completes the batch: it has the path."""
    project.write("test_slo.py", "def test_each(dsr1_point, dsr1_load): assert dsr1_load().point.conc != 4")
    outcome = project.run("test_slo.py", *on_server, *LENGTHS, "--conc", "4,2", "-x")
    assert outcome.status == 1, outcome
    command = outcome.output.partition("complete it with: pytest ")[2].splitlines()[0].split()
    assert command[-1] == "test_slo.py"
    outcome = project.run(*command)
    assert "1 passed, 1 deselected" in outcome.output
    assert [line.split()[4] for line in project.lines()] == ["FAILED", "PASSED"]


def test_own_tests_that_pytest_benchmark_would_skip(project: Project, on_server: tuple[str, ...]) -> None:
    """A usage error, as in a sweep."""
    project.write("test_slo.py", "def test_slo(dsr1_load): dsr1_load(isl=8, osl=1, conc=2)")
    outcome = project.run("test_slo.py", *on_server, "--benchmark-skip")
    assert outcome.status == 4, outcome
    assert "--benchmark-skip" in outcome.output


def test_one_test_measures_several_points(project: Project, on_server: tuple[str, ...]) -> None:
    """Each is a point of the batch."""
    project.write(
        "test_slo.py",
        "def test_scales(dsr1_load):",
        "    runs = [dsr1_load(isl=8, osl=1, conc=conc) for conc in (1, 2)]",
        "    assert [run.point.conc for run in runs] == [1, 2]",
    )
    outcome = project.run("test_slo.py", *on_server)
    assert outcome.status == 0, outcome
    assert [line.partition(" (")[0] for line in project.lines()] == [
        "[1/2] ISL=8 OSL=1 CONC=1: PASSED",
        "[2/2] ISL=8 OSL=1 CONC=2: PASSED",
    ]


def test_accuracy_is_off(project: Project, on_server: tuple[str, ...]) -> None:
    """`dsr1_accuracy` says so; no figures."""
    project.write(
        "test_slo.py",
        "def test_it(dsr1_accuracy, dsr1_load):",
        "    assert dsr1_load(isl=8, osl=1, conc=2).passed",
        "    assert dsr1_accuracy(isl=8, osl=1, conc=2).figures is None",
    )
    outcome = project.run("test_slo.py", *on_server)
    assert outcome.status == 0, outcome


def test_on_the_embedded_engine(project: Project) -> None:
    """Without a server and without lengths: the engine is started for the test."""
    project.write(
        "test_slo.py", "def test_slo(dsr1_load): assert dsr1_load(isl=8, osl=1, conc=2).engine == 'reference'"
    )
    outcome = project.run("test_slo.py", *QUICK, "--engine", "reference")
    assert outcome.status == 0, outcome
    assert "CONC=2: PASSED" in project.summary()


def test_collecting_own_tests_starts_nothing(project: Project) -> None:
    """--collect-only adds no server, no folder, and nothing to the output."""
    project.write("test_slo.py", "def test_slo(dsr1_load): dsr1_load(isl=8, osl=1, conc=2)")
    outcome = project.run("test_slo.py", "--co", "-q")
    assert outcome.status == 0, outcome
    assert outcome.output.split()[:-1] == ["test_slo.py::test_slo", "1", "test", "collected", "in"]
    assert not (project.folder / "reports").exists()


# -- own servers ------------------------------------------------------------------------------------------------------

IMPORTS = ("import pytest", "from pytest_dsr1 import Served")


def fixture_for(server: TimedServer) -> tuple[str, ...]:
    return (
        *IMPORTS,
        "@pytest.fixture(scope='session')",
        f"def dsr1_server(): yield Served(url='{server.url}/v1', model='{server.model}')",
    )


def hook_for(server: TimedServer) -> tuple[str, ...]:
    return (
        *IMPORTS,
        "def pytest_dsr1_server(config, sweep):",
        f"    return Served(url='{server.url}', model='{server.model}')",
    )


@pytest.mark.parametrize("way", [fixture_for, hook_for], ids=["fixture", "hook"])
def test_conftest_of_the_rootdir_brings_a_server(project: Project, way: object) -> None:
    """The sweep measures it, and no embedded engine."""
    assert callable(way)
    with timed_server(ttft_s=0.002) as own:
        project.write("conftest.py", *way(own))
        outcome = project.run(*LENGTHS, *QUICK, "--conc", "2")
        assert outcome.status == 0, outcome
        assert len(own.truth()["requests"]) == 8
    result = json.loads((project.batch / "result_isl8_osl1_conc2.json").read_text())
    assert (result["engine"], result["server"]["model"]) == ("external", "scripted")


def test_hook_in_the_conftest_of_the_tests(project: Project, server: TimedServer) -> None:
    """In tests/conftest.py, without workers and with one."""
    project.write("pytest.ini", "[pytest]", "testpaths = tests")
    project.write("tests/conftest.py", *hook_for(server))
    for workers in ((), ("-n", "1")):
        outcome = project.run(*LENGTHS, *QUICK, "--conc", "2", *workers)
        assert outcome.status == 0, outcome
        result = json.loads((project.batch / "result_isl8_osl1_conc2.json").read_text())
        assert result["server"]["url"] == server.url


def test_fixture_that_the_sweep_does_not_see(project: Project, server: TimedServer) -> None:
    """In tests/conftest.py: a usage error that names the file and the remedies; a test of that folder sees it."""
    project.write("pytest.ini", "[pytest]", "testpaths = tests")
    conftest = project.write("tests/conftest.py", *fixture_for(server))
    outcome = project.run(*LENGTHS, *QUICK, "--conc", "2")
    assert outcome.status == 4, outcome
    assert f"{conftest} defines dsr1_server" in outcome.output
    assert "pytest_dsr1_server" in outcome.output
    assert not project.batches
    project.write("tests/test_slo.py", "def test_slo(dsr1_load): assert dsr1_load(isl=8, osl=1, conc=2).passed")
    outcome = project.run("tests", *QUICK)
    assert outcome.status == 0, outcome


@pytest.mark.parametrize(
    ("args", "names"),
    [(("-n", "1"), "-n 1"), (("--server-url", "http://127.0.0.1:1"), "--server-url")],
    ids=["workers", "another server"],
)
def test_fixture_that_contradicts(project: Project, server: TimedServer, args: tuple[str, ...], names: str) -> None:
    """With workers, each of which would have one; with --server-url."""
    project.write("conftest.py", *fixture_for(server))
    outcome = project.run(*LENGTHS, *QUICK, *args)
    assert outcome.status == 4, outcome
    assert names in outcome.output
    assert "dsr1_server" in outcome.output


def test_fixture_of_the_test_module(project: Project, server: TimedServer) -> None:
    """Its own server is measured; beside another one that was typed it is an error."""
    test = "def test_slo(dsr1_load): assert dsr1_load(isl=8, osl=1, conc=2).passed"
    project.write("test_slo.py", *fixture_for(server), test)
    outcome = project.run("test_slo.py", *QUICK)
    assert outcome.status == 0, outcome
    result = json.loads((project.batch / "result_isl8_osl1_conc2.json").read_text())
    assert result["server"]["url"] == server.url
    with timed_server() as other:
        outcome = project.run("test_slo.py", *QUICK, "--server-url", other.url)
        assert not other.truth()["requests"]
    assert outcome.status == 1, outcome
    assert f"dsr1_server gave {server.url}" in outcome.output


def test_fixture_that_requests_ours(project: Project, server: TimedServer) -> None:
    """It wraps the server that the session has chosen."""
    project.write(
        "conftest.py",
        "import pytest",
        "@pytest.fixture(scope='session')",
        "def dsr1_server(dsr1_server):",
        "    print('served', dsr1_server.model)",
        "    return dsr1_server",
    )
    outcome = project.run(*LENGTHS, *QUICK, "--conc", "2", "--port", str(server.port), "--model", "scripted", "-s")
    assert outcome.status == 0, outcome
    assert "served scripted" in outcome.output


def test_server_without_a_measurement(project: Project, on_server: tuple[str, ...]) -> None:
    """A test may look at the server only; it leaves no batch."""
    project.write("test_up.py", "def test_up(dsr1_server): assert dsr1_server.model == 'scripted'")
    outcome = project.run("test_up.py", *on_server)
    assert outcome.status == 0, outcome
    assert not project.batches


def test_server_that_does_not_answer(project: Project) -> None:
    """A usage error, as in a sweep."""
    project.write("test_slo.py", "def test_slo(dsr1_load): dsr1_load(isl=8, osl=1, conc=2)")
    outcome = project.run("test_slo.py", *QUICK, "--server-url", "http://127.0.0.1:9")
    assert outcome.status == 4, outcome
    assert "http://127.0.0.1:9" in outcome.output
    assert "Traceback" not in outcome.output


def test_hook_that_gives_no_server(project: Project) -> None:
    """The error says what it gave, and what it must give."""
    project.write("conftest.py", "def pytest_dsr1_server(): return 'http://127.0.0.1:1'")
    outcome = project.run(*LENGTHS, *QUICK)
    assert outcome.status == 4, outcome
    assert "'http://127.0.0.1:1'" in outcome.output
    assert "Served(url=..., model=...)" in outcome.output
