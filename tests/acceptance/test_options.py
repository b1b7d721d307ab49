"""What a user may type, what he is told when it is wrong, and that nothing happens until a sweep is asked for."""

from __future__ import annotations

import pytest

from tests.project import Project

LENGTHS = ("--isl", "8", "--osl", "4")


def test_inert_in_a_strangers_project(project: Project) -> None:
    """Without lengths no environment variable is read, no folder made, no test of his touched."""
    (project.folder / "test_his.py").write_text("def test_his(): pass\n")
    project.environment |= {"MODEL": "", "PORT": "no port", "TP": "-1"}
    outcome = project.run("-v")
    assert outcome.status == 0, outcome
    assert "dsr1" not in outcome.output.partition("collected")[2]
    assert not (project.folder / "reports").exists()


def test_bare_pytest_says_what_to_type(project: Project) -> None:
    """The two tests exist, are skipped, and the closing summary has the command."""
    outcome = project.run("--pyargs", "pytest_dsr1.test_sweep", "-v")
    assert outcome.status == 0, outcome
    assert "test_accuracy[isl?-osl?-conc16] SKIPPED" in outcome.output
    assert "10 skipped" in outcome.output
    assert "type the lengths, as in: pytest --isl 1024 --osl 1024" in outcome.output


def test_placeholders_are_selected_like_the_real_ones(project: Project) -> None:
    """`-k conc16` without lengths finds two tests to skip."""
    outcome = project.run("--pyargs", "pytest_dsr1.test_sweep", "-k", "conc16")
    assert outcome.status == 0, outcome
    assert "2 skipped, 8 deselected" in outcome.output


@pytest.mark.parametrize("shuffler", [("-p", "randomly"), ("-p", "random_order", "--random-order")], ids=lambda s: s[1])
def test_sweep_order_survives_a_shuffler(project: Project, shuffler: tuple[str, ...]) -> None:
    """Scenario by scenario, concurrency by concurrency, accuracy before performance."""
    command = project.run("--scenario", "8/4,16/4", "--conc", "2,4", "--co", "-q", *shuffler)
    tests = [line.partition("::")[2] for line in command.output.splitlines() if "::" in line]
    assert tests == [
        f"{test}[isl{isl}-osl4-conc{conc}]"
        for isl in (8, 16)
        for conc in (2, 4)
        for test in ("test_accuracy", "test_perf")
    ]
    assert not (project.folder / "reports").exists()


def test_mode_acc_has_no_performance_tests(project: Project) -> None:
    """They are not generated: neither skipped nor deselected."""
    outcome = project.run(*LENGTHS, "--mode", "acc", "--co", "-q")
    assert "5 tests collected" in outcome.output
    assert "test_perf" not in outcome.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--isl", "1k", "--osl", "4"), "--isl: '1k' is not accepted; use a whole number from 1"),
        ((*LENGTHS, "--server-url", "http://127.0.0.1:9"), "no server answers at http://127.0.0.1:9"),
        ((*LENGTHS, "--accuracy-data", "no.jsonl"), "no.jsonl"),
        ((*LENGTHS, "--accuracy-baseline", "no.json"), "--accuracy-baseline: "),
        ((*LENGTHS, "-n", "2"), "-n 2: two workers on one server would measure each other"),
        (("--resume", "nowhere"), "nowhere is no batch folder"),
    ],
    ids=["value", "server", "corpus", "baseline", "workers", "resume"],
)
def test_usage_error_is_one_clear_line(project: Project, args: tuple[str, ...], message: str) -> None:
    """Exit status 4, no traceback, nothing left behind."""
    outcome = project.run(*args)
    assert outcome.status == 4, outcome
    assert message in outcome.output
    assert "Traceback" not in outcome.output
    assert not project.batches


def test_environment_is_named_in_its_error(project: Project) -> None:
    """Once a sweep is asked for, a bad PORT is an error that says where it stands."""
    project.environment["PORT"] = "http"
    outcome = project.run(*LENGTHS)
    assert outcome.status == 4, outcome
    assert "PORT (environment): 'http' is not accepted" in outcome.output


def test_option_beats_environment_beats_ini(project: Project) -> None:
    """The header's prompt seed shows whose value it was."""
    (project.folder / "pytest.ini").write_text(
        "[pytest]\ndsr1_isl = 8\ndsr1_osl = 4\ndsr1_conc = 2\ndsr1_prompt_seed = 11\n"
    )
    from_ini = project.run("--preflight", "--engine", "reference")
    assert from_ini.status == 0, from_ini
    assert "prompt seed 11" in from_ini.output
    typed = project.run("--preflight", "--engine", "reference", "--prompt-seed", "12")
    assert "prompt seed 12" in typed.output


def test_preflight_checks_and_runs_nothing(project: Project) -> None:
    """It says what would run, and leaves no folder."""
    outcome = project.run(*LENGTHS, "--preflight", "--engine", "reference", "-k", "conc16")
    assert outcome.status == 0, outcome
    assert "would run isl8-osl4-conc16: accuracy, 800 requests of 8 + 4 tokens" in outcome.output
    assert "would run isl8-osl4-conc4" not in outcome.output
    assert not (project.folder / "reports").exists()


def test_preflight_fails_on_what_would_fail(project: Project) -> None:
    """A corpus that is not WikiText is found before any server is."""
    (project.folder / "rows.jsonl").write_text('{"text": "short"}\n')
    outcome = project.run(*LENGTHS, "--preflight", "--accuracy-data", "rows.jsonl")
    assert outcome.status == 1, outcome
    assert f"FAILED --accuracy-data: {project.folder / 'rows.jsonl'}: " in outcome.output


@pytest.mark.parametrize("how", ["option", "entry point", "both"])
def test_plugin_is_found_either_way(project: Project, how: str) -> None:
    """-p in a checkout's ini file, the installed entry point, and both at once give one plugin."""
    if how != "entry point":
        (project.folder / "pytest.ini").write_text("[pytest]\naddopts = -p pytest_dsr1.plugin\n")
    if how == "option":
        project.environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    outcome = project.run(*LENGTHS, "--co", "-q")
    assert outcome.status == 0, outcome
    assert "10 tests collected" in outcome.output
