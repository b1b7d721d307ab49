"""The plugin as a guest: what it leaves alone in other people's projects, and what it says when something collides."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pytest_dsr1.options.table import OPTIONS
from tests.project import Project
from tests.servers.timed import TimedServer, timed_server

LENGTHS = ("--isl", "8", "--osl", "1")
SWEEP_MODULE = "tests_bench/test_sweep.py"
#: Names of fixtures that were once registered in every project.
OLD_FIXTURES = ("server", "record", "load", "bench", "accuracy", "accurate")


@pytest.fixture(scope="module")
def server() -> Iterator[TimedServer]:
    with timed_server(ttft_s=0.002) as started:
        yield started


@pytest.fixture
def quick(server: TimedServer) -> tuple[str, ...]:
    """A sweep of one point that passes."""
    return (*LENGTHS, "--conc", "2", "--num-prompts", "4", "--accuracy", "off", "--server-url", server.url)


def collected(output: str) -> list[str]:
    """The ids that `--co -q` prints."""
    return [line for line in output.splitlines() if "::" in line]


# -- fixtures and markers ---------------------------------------------------------------------------------------------


def test_only_dsr1_fixtures_are_registered(project: Project) -> None:
    """A test that requests a fixture that its project does not have is told so."""
    project.write("test_his.py", *(f"def test_{name}({name}): pass" for name in OLD_FIXTURES))
    outcome = project.run()
    assert outcome.status == 1, outcome
    assert f"{len(OLD_FIXTURES)} errors" in outcome.output
    for name in OLD_FIXTURES:
        assert f"fixture '{name}' not found" in outcome.output


def test_fixtures_of_the_same_names_are_theirs(project: Project) -> None:
    """In a conftest and in another plugin, without a sweep."""
    for module, names in (("conftest.py", OLD_FIXTURES[:3]), ("their_plugin.py", OLD_FIXTURES[3:])):
        fixtures = (f"@pytest.fixture\ndef {name}(): return 'theirs'" for name in names)
        project.write(module, "import pytest", *fixtures)
    project.write("test_his.py", *(f"def test_{name}({name}): assert {name} == 'theirs'" for name in OLD_FIXTURES))
    project.write("pytest.ini", "[pytest]", "pythonpath = .", "addopts = -p their_plugin")
    outcome = project.run("--strict-markers", "-W", "error")
    assert outcome.status == 0, outcome
    assert f"{len(OLD_FIXTURES)} passed" in outcome.output


def test_names_for_all_projects_begin_with_dsr1(project: Project) -> None:
    """Fixtures, ini options, markers: nothing else can collide."""
    sections = project.run("--fixtures").output.split(" fixtures defined from ")
    ours = next(section for section in sections if section.startswith("pytest_dsr1.fixtures "))
    names = [line.split()[0] for line in ours.splitlines() if " -- " in line]
    assert names
    assert all(name.startswith("dsr1_") for name in names), names
    help_text = project.run("--help").output
    assert all(f"  {option.dest} (" in help_text for option in OPTIONS)
    assert "dsr1" not in project.run("--markers").output


# -- options ----------------------------------------------------------------------------------------------------------

DECLARES_MANY = (
    "def pytest_addoption(parser):",
    *(f"    parser.addoption('{name}', default='none')" for name in ("--model", "--mode", "--engine", "--tokenizer")),
    "    parser.addoption('--port', type=int)",
    "    parser.addoption('--resume', action='store_true')",
    "    parser.addoption('--yes', action='store_true')",
)
ASSERTS_THEIRS = (
    "def test_his(request):",
    "    option = request.config.option",
    "    assert (option.model, option.port, option.resume, option.yes) == ('tiny', 1, True, True)",
)
THEIRS = ("--model", "tiny", "--port", "1", "--resume", "--yes")


def load_plugin(project: Project, name: str) -> None:
    """Have a new process load a plugin of the project's folder, wherever its rootdir is."""
    path = os.pathsep.join([str(project.folder), project.environment.get("PYTHONPATH", "")])
    project.environment |= {"PYTEST_PLUGINS": name, "PYTHONPATH": path}


@pytest.mark.parametrize("how", ["conftest", "-p", "PYTEST_PLUGINS"])
def test_options_of_the_same_names_are_theirs(project: Project, how: str) -> None:
    """Whoever declares them, and whenever: their values arrive where they are expected."""
    project.write("conftest.py" if how == "conftest" else "their_options.py", *DECLARES_MANY)
    project.write("test_his.py", *ASSERTS_THEIRS)
    args: tuple[str, ...] = THEIRS
    if how == "-p":
        project.write("pytest.ini", "[pytest]", "pythonpath = .", "addopts = -p their_options")
    elif how == "PYTEST_PLUGINS":
        load_plugin(project, "their_options")
        outcome = project.run_process(*args)
        assert outcome.status == 0, outcome
        return
    outcome = project.run(*args)
    assert outcome.status == 0, outcome


def test_option_that_a_conftest_of_a_folder_declares_late(project: Project, quick: tuple[str, ...]) -> None:
    """A conftest that is found during collection, without a sweep and with one."""
    project.write("sub/tests/conftest.py", *DECLARES_MANY)
    project.write("sub/tests/test_his.py", "def test_his(): pass")
    outcome = project.run("--num-prompts", "8")
    assert outcome.status == 0, outcome
    project.write("sub/tests/test_slo.py", "def test_slo(dsr1_load): assert dsr1_load().passed")
    outcome = project.run(*quick, ".")
    assert outcome.status == 0, outcome
    assert "2 passed" in outcome.output


def test_values_of_their_options(project: Project) -> None:
    """A plugin's flag takes no path of a test for its value, and the value of its option may move its rootdir."""
    inner = Project(_folder(project, "inner"))
    _folder(project, "data")
    inner.write("their_options.py", *DECLARES_MANY)
    inner.write("checks/conftest.py", "def pytest_addoption(parser): parser.addoption('--late')")
    inner.write("checks/test_his.py", "def test_his(request): assert request.config.option.late == 'x'")
    load_plugin(inner, "their_options")
    inner.write("test_his.py", "def test_his(): pass")
    for args in (("--late=x", "--resume", "checks"), ("--model", "../data", "--ignore=checks")):
        outcome = inner.run_process(*args)
        assert outcome.status == 0, outcome


def test_typed_option_that_somebody_else_declares(project: Project) -> None:
    """In a sweep: a usage error that names the option, the other's file and the remedies."""
    conftest = project.write("conftest.py", "def pytest_addoption(parser):", "    parser.addoption('--conc')")
    outcome = project.run(*LENGTHS, "--conc", "2")
    assert outcome.status == 4, outcome
    for expected in ("--conc is", str(conftest), "--noconftest"):
        assert expected in outcome.output
    assert "Traceback" not in outcome.output
    assert project.run(*LENGTHS, "--conc", "2", "--noconftest", "--co").status == 0
    # Nobody typed theirs.
    assert project.run(*LENGTHS, "--co").status == 0


def test_lengths_that_somebody_else_declares(project: Project) -> None:
    """One of --isl and --osl is another's: the other one still asks for a sweep."""
    conftest = project.write("conftest.py", "def pytest_addoption(parser):", "    parser.addoption('--isl')")
    outcome = project.run(*LENGTHS)
    assert outcome.status == 4, outcome
    assert "--isl is" in outcome.output
    assert str(conftest) in outcome.output
    assert project.run("--isl", "8").status == 5


def test_nothing_is_added_to_a_strangers_output(project: Project) -> None:
    """Collected or run, with and without the plugin."""
    project.write("test_his.py", "def test_his(): pass")
    for args in (("--co",), ("-v",)):
        runs = [
            project.run("-p", "no:benchmark", *args, *more).output for more in ((), ("-p", "no:pytest_dsr1.plugin"))
        ]
        lines = [[line for line in run.splitlines() if not line.startswith(("plugins:", "==="))] for run in runs]
        assert lines[0] == lines[1]
    assert {path.name for path in project.folder.iterdir()} <= {"pytest.ini", "test_his.py", ".pytest_cache"}


def test_help_leads_to_all_options(project: Project) -> None:
    """With somebody else's of the same name beside them."""
    free = project.run("--help").output
    assert [option.name for option in OPTIONS if f"  {option.name}" not in free] == []
    project.write("conftest.py", *DECLARES_MANY)
    outcome = project.run("--help")
    assert outcome.status == 0, outcome
    assert "--num-prompts=N" in outcome.output


@pytest.mark.parametrize("where", ["PYTEST_ADDOPTS", "-o", "@file", "ini", "addopts"])
def test_options_may_stand_anywhere(project: Project, where: str) -> None:
    """On the command line, in the environment, in a file of arguments, in the ini file."""
    args: tuple[str, ...] = ()
    match where:
        case "PYTEST_ADDOPTS":
            project.environment["PYTEST_ADDOPTS"] = "--isl 8 --osl 1"
        case "-o":
            args = ("-o", "addopts=--isl 8 --osl 1")
        case "@file":
            project.write("lengths.txt", *LENGTHS)
            args = ("@lengths.txt",)
        case "ini":
            project.write("pytest.ini", "[pytest]", "dsr1_isl = 8", "dsr1_osl = 1")
        case "addopts":
            project.write("pytest.ini", "[pytest]", "addopts = --isl 8 --osl 1")
    outcome = project.run("--co", "-q", *args)
    assert len(collected(outcome.output)) == 10, outcome


# -- which tests are run ----------------------------------------------------------------------------------------------


def test_sweep_runs_alone_in_any_folder(project: Project, quick: tuple[str, ...]) -> None:
    """Where no path was typed: the stranger's tests are not collected, and the ids are those of a checkout."""
    project.write("pytest.ini", "[pytest]", "testpaths = tests", "python_files = check_*.py", "norecursedirs = *")
    project.write("tests/check_his.py", "def test_his(): assert False")
    project.write("tests_bench/test_sweep.py", "def test_other(): assert False")
    outcome = project.run(*quick, "-v")
    assert outcome.status == 0, outcome
    assert f"{SWEEP_MODULE}::test_perf[isl8-osl1-conc2] PASSED" in outcome.output
    assert "test_his" not in outcome.output


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((f"{SWEEP_MODULE}::test_perf[isl8-osl1-conc4]",), ["test_perf[isl8-osl1-conc4]"]),
        ((f"{SWEEP_MODULE}::test_perf", "--conc", "2,4"), ["test_perf[isl8-osl1-conc2]", "test_perf[isl8-osl1-conc4]"]),
        (("--pyargs", "pytest_dsr1.test_sweep::test_perf", "--conc", "2"), ["test_perf[isl8-osl1-conc2]"]),
        (("--pyargs", "pytest_dsr1.test_sweep", "--conc", "2", "-k", "perf"), ["test_perf[isl8-osl1-conc2]"]),
        (("--deselect", f"{SWEEP_MODULE}::test_accuracy", "--conc", "2"), ["test_perf[isl8-osl1-conc2]"]),
    ],
    ids=["id", "function", "pyargs function", "pyargs", "deselect"],
)
def test_typed_ids(project: Project, args: tuple[str, ...], expected: list[str]) -> None:
    """An id that was shown can be typed, in any folder."""
    outcome = project.run(*LENGTHS, "--co", "-q", *args)
    assert outcome.status == 0, outcome
    assert collected(outcome.output) == [f"{SWEEP_MODULE}::{name}" for name in expected]


def test_typed_path_runs_that_path_only(project: Project, quick: tuple[str, ...]) -> None:
    """And a session that asks for a sweep and has no test of it is not green."""
    project.write("test_his.py", "def test_his(): pass")
    outcome = project.run(*quick, "test_his.py")
    assert outcome.status == 1, outcome
    assert "1 passed" in outcome.output
    assert "no test of the sweep was run" in outcome.output
    assert not project.batches


def test_last_failed(project: Project) -> None:
    """--lf finds the failed test by its id, in whichever folder."""
    args = (*LENGTHS, "--conc", "2,4", "--num-prompts", "4", "--accuracy", "off")
    with timed_server(ttft_s=0.002, answers={5: {"status": 500}}) as server:
        assert project.run(*args, "--server-url", server.url).status == 1
        outcome = project.run(*args, "--server-url", server.url, "--lf")
    assert outcome.status == 0, outcome
    assert "1 passed" in outcome.output


@pytest.mark.parametrize(
    ("keyword", "expected"),
    [
        ("conc16", ["accuracy-16", "perf-16"]),
        ("not conc16", ["accuracy-1", "perf-1", "accuracy-160", "perf-160"]),
        ("perf and (conc1 or conc160)", ["perf-1", "perf-160"]),
        ("conc160]", ["accuracy-160", "perf-160"]),
    ],
)
def test_keyword_takes_one_concurrency(project: Project, keyword: str, expected: list[str]) -> None:
    """-k searches within names; conc16 still does not take conc160."""
    outcome = project.run(*LENGTHS, "--conc", "1,16,160", "--co", "-q", "-k", keyword)
    assert [
        name.partition("::test_")[2].replace("[isl8-osl1-conc", "-").rstrip("]") for name in collected(outcome.output)
    ] == expected


# -- never green without a measurement ---------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [("--setup-only",), ("--setup-plan",), ("--collect-only",)], ids=lambda args: args[0])
def test_showing_is_no_measuring(project: Project, quick: tuple[str, ...], args: tuple[str, ...]) -> None:
    """Options of pytest that run no test make no batch that claims anything."""
    outcome = project.run(*quick, *args)
    assert outcome.status == (1 if args == ("--setup-only",) else 0), outcome
    assert not any("PASSED" in batch.joinpath("summary.txt").read_text() for batch in project.batches)


def test_sweep_whose_tests_are_all_skipped_is_not_green(project: Project, quick: tuple[str, ...]) -> None:
    """Accuracy is off, and performance was deselected: nothing was measured."""
    outcome = project.run(*quick, "-k", "accuracy")
    assert outcome.status == 1, outcome
    assert "1 skipped" in outcome.output


# -- other plugins ----------------------------------------------------------------------------------------------------


def test_benchmark_only_measures(project: Project, quick: tuple[str, ...]) -> None:
    """The performance test uses pytest-benchmark after it has measured; the accuracy test never does."""
    outcome = project.run(*quick, "--benchmark-only")
    assert outcome.status == 0, outcome
    assert "1 passed, 1 skipped" in outcome.output
    assert "CONC=2: PASSED" in project.summary()


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (("--benchmark-skip",), ("--benchmark-skip", "--mode acc")),
        (("-n", "1", "--benchmark-json", "rows.json"), ("--benchmark-json", "-n")),
        (("-n", "1", "--benchmark-autosave"), ("--benchmark-autosave", "-n")),
        (("--dist", "each", "--tx", "popen"), ("--dist each",)),
    ],
    ids=["skip", "json", "autosave", "each"],
)
def test_options_that_would_leave_something_out(
    project: Project, quick: tuple[str, ...], args: tuple[str, ...], names: tuple[str, ...]
) -> None:
    """A usage error says why, before anything runs."""
    outcome = project.run(*quick, *args)
    assert outcome.status == 4, outcome
    assert all(name in outcome.output for name in names), outcome
    assert not project.batches
    assert not (project.folder / "rows.json").exists()


def test_reruns_are_refused(project: Project, quick: tuple[str, ...]) -> None:
    """A point that is measured a second time is another measurement."""
    project.write("conftest.py", "def pytest_addoption(parser):", "    parser.addoption('--reruns', type=int)")
    outcome = project.run(*quick, "--reruns", "2")
    assert outcome.status == 4, outcome
    assert "--reruns" in outcome.output
    assert project.run("--reruns", "2").status == 5


def test_without_pytest_benchmark(project: Project, quick: tuple[str, ...]) -> None:
    """The result is written; nobody makes a row of it."""
    outcome = project.run(*quick, "-p", "no:benchmark", "-p", "no:junitxml", "-W", "error")
    assert outcome.status == 0, outcome
    assert len(list(project.batch.glob("result_*.json"))) == 1


def test_warnings_as_errors_with_junit(project: Project, quick: tuple[str, ...]) -> None:
    """Figures stand in the XML file of both kinds, though `record_property` warns under xunit2."""
    outcome = project.run(*quick, "-W", "error", "--junitxml", "junit.xml")
    assert outcome.status == 0, outcome
    names = {one.get("name") for one in ElementTree.parse(project.folder / "junit.xml").iter("property")}
    assert {"median_e2el_ms", "total_token_throughput"} <= names


def test_parameters_of_a_benchmark_row(project: Project, quick: tuple[str, ...]) -> None:
    """They are JSON, and rows can be grouped by them."""
    outcome = project.run(
        *quick, "--conc", "2,4", "--benchmark-json", "rows.json", "--benchmark-group-by", "param:conc", "-W", "error"
    )
    assert outcome.status == 0, outcome
    rows = json.loads((project.folder / "rows.json").read_text())["benchmarks"]
    assert [row["params"] for row in rows] == [{"isl": 8, "osl": 1, "conc": conc} for conc in (2, 4)]
    assert "benchmark 'conc=2'" in outcome.output
    assert "UNSERIALIZABLE" not in outcome.output


# -- rootdir and paths ------------------------------------------------------------------------------------------------


def test_value_that_moves_the_rootdir(project: Project) -> None:
    """pytest takes a value that stands by itself for a path of tests: refused with the remedy."""
    inner = Project(_folder(project, "inner"))
    project.write("data/rows.jsonl", "{}")
    inner.environment["PYTEST_ADDOPTS"] = "--accuracy-data ../data"
    outcome = inner.run(*LENGTHS, "--co", "-q")
    assert outcome.status == 4, outcome
    assert "--option=VALUE" in outcome.output
    inner.environment["PYTEST_ADDOPTS"] = "--accuracy-data=../data"
    assert inner.run(*LENGTHS, "--co", "-q").status == 0


def test_values_are_no_paths_of_tests(project: Project, quick: tuple[str, ...]) -> None:
    """A relative path as a value: `tests/conftest.py` is still loaded, and the sweep still runs alone."""
    project.write("pytest.ini", "[pytest]", "testpaths = tests")
    project.write("tests/conftest.py", *DECLARES_MANY)
    _folder(project, "sub")
    outcome = project.run(*quick, "--reports-dir", "sub", "--yes")
    assert outcome.status == 4, outcome
    assert str(Path("tests") / "conftest.py") in outcome.output
    outcome = project.run(*quick, "--reports-dir", "sub")
    assert outcome.status == 0, outcome
    assert len(list((project.folder / "sub").glob("batch_*"))) == 1


def _folder(project: Project, name: str) -> Path:
    folder = project.folder / name
    folder.mkdir()
    return folder


# -- start-up ---------------------------------------------------------------------------------------------------------


def test_start_up_imports_next_to_nothing(project: Project) -> None:
    """A stranger's session has no numpy, asyncio, requests or msgspec of ours, and few modules of the package."""
    project.write("test_his.py", "def test_his(): pass")
    project.write("conftest.py", "import sys", "def pytest_unconfigure():", "    print('modules', *sys.modules)")
    project.environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with_plugin = project.run_process("--co", "-q", "-p", "pytest_dsr1.plugin")
    without = project.run_process("--co", "-q")
    assert (with_plugin.status, without.status) == (0, 0), with_plugin
    ours = set(with_plugin.output.rpartition("modules ")[2].split())
    ours -= set(without.output.rpartition("modules ")[2].split())
    costly = {"numpy", "asyncio", "requests", "msgspec", "uvloop", "urllib.request", "http.client"}
    assert not ours & costly
    assert {name for name in ours if name.startswith("pytest_dsr1")} == {
        "pytest_dsr1",
        "pytest_dsr1.fixtures",
        "pytest_dsr1.hookspecs",
        "pytest_dsr1.options",
        "pytest_dsr1.options.kinds",
        "pytest_dsr1.options.table",
        "pytest_dsr1.plugin",
    }
