"""Submissions to real Gradio servers in processes, our own leaderboard among them.

Gradio 6 is the one that is installed; Gradio 5 that of the Python that DSR1_TEST_GRADIO5 names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_dsr1.core.result import Result
from pytest_dsr1.servers.process import holder_of
from pytest_dsr1.submit import client
from pytest_dsr1.submit.client import Leaderboard, LeaderboardError
from pytest_dsr1.submit.events import SubmissionState as State
from pytest_dsr1.submit.schema import FIELDS_14, IF_KNOWN, match_labels, values_of
from pytest_dsr1.submit.send import Outbox
from tests.batches import result_fields
from tests.conftest import ROOT
from tests.project import Outcome, Project, wait_until
from tests.scoring import scoring_server, with_baseline
from tests.servers.launched import write_recipe
from tests.servers.scripted_space import SEED_LABELS, scripted_space

PATIENCE_S = 60.0


@contextmanager
def started(python: str, *args: str) -> Iterator[str]:
    """The line that a server prints when it listens."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GRADIO_ANALYTICS_ENABLED": "False"}
    with subprocess.Popen(
        [python, *args], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield next(line for line in process.stdout if "port " in line or "http://" in line)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def gradio6_python() -> str:
    """Our own Python, if it has Gradio."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("Gradio is not installed: pip install 'pytest-dsr1[leaderboard]'")
    return sys.executable


@pytest.fixture(scope="module", params=["gradio 6", "gradio 5"])
def python(request: pytest.FixtureRequest) -> str:
    """A Python that has this generation of Gradio."""
    if request.param == "gradio 6":
        return str(request.getfixturevalue("gradio6_python"))
    if "DSR1_TEST_GRADIO5" not in os.environ:
        pytest.skip("DSR1_TEST_GRADIO5 names no Python that has Gradio 5")
    return os.environ["DSR1_TEST_GRADIO5"]


@pytest.fixture(scope="module")
def spaces(python: str) -> Iterator[str]:
    """Spaces that are not ours, one under each path."""
    with started(python, str(ROOT / "tests" / "servers" / "space.py")) as line:
        yield f"http://127.0.0.1:{line.split()[1]}"


@contextmanager
def own_leaderboard(python: str, folder: Path, *args: str) -> Iterator[tuple[str, Path]]:
    """Our own leaderboard in a process: its URL and its database."""
    database = folder / "rows.sqlite"
    command = ("-m", "pytest_dsr1.leaderboard", "serve", "--port", "0", "--database", str(database), *args)
    with started(python, *command) as line:
        yield next(word for word in line.split() if word.startswith("http://")).rstrip(","), database


@pytest.fixture(scope="module")
def board(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Our own leaderboard for 16/32: each test sends rows of another team."""
    with own_leaderboard(python, tmp_path_factory.mktemp("board"), "--scenario", "16/32") as started:
        yield started


def stored(database: Path, team: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        query = "SELECT * FROM submissions WHERE team = ? ORDER BY conc, isl, id"
        return [dict(row) for row in connection.execute(query, [team])]


# -- Spaces that are not ours ----------------------------------------------------------------------------------------


def send(url: str, **changed: Any) -> tuple[State, str]:
    board = Leaderboard(url)
    schema = match_labels(board.labels(PATIENCE_S))
    row = schema.row(values_of(Result.from_fields(result_fields(**changed)), 'Team "A" \N{ROCKET}'))
    *_, outcome = board.submit(row, PATIENCE_S)
    return outcome.state, outcome.message


@pytest.mark.gradio
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/ok", (State.ACCEPTED, 'ok Team "A" \N{ROCKET}')),
        ("/fourteen", (State.ACCEPTED, 'ok Team "A" \N{ROCKET}')),
        ("/boom", (State.REFUSED, "its handler failed and gave no reason")),
        ("/boom_shown", (State.REFUSED, "boom: the table is gone")),
        ("/gr_error", (State.REFUSED, "word_perplexity is too good")),
    ],
)
def test_outcome_of_a_real_space(python: str, spaces: str, path: str, expected: tuple[State, str]) -> None:
    """The outcome says what the handler did."""
    if python != sys.executable and expected[0] is State.REFUSED:
        # Gradio 5 does not report the reason.
        expected = State.REFUSED, "its handler failed and gave no reason"
    assert send(spaces + path) == expected


@pytest.mark.gradio
def test_row_is_stored_as_it_was_sent(spaces: str) -> None:
    """Every digit, in the order of the labels."""
    send(f"{spaces}/fourteen", tput_per_gpu=1017.2612345678902)
    with urllib.request.urlopen(f"{spaces}/rows") as reply:
        rows = json.load(reply)
    result = Result.from_fields(result_fields(tput_per_gpu=1017.2612345678902))
    expected = values_of(result, 'Team "A" \N{ROCKET}')
    assert [expected[field] for field in FIELDS_14] in rows


@pytest.mark.gradio
def test_full_queue_is_waited_for(spaces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that gets 503 is sent again until the queue has room, and stored once."""
    monkeypatch.setattr(client, "BACK_OFF_S", (0.02, 0.1))
    board = Leaderboard(f"{spaces}/full")
    labels = board.labels(PATIENCE_S)
    assert len(labels) == 11
    raw = partial(urllib.request.Request, f"{spaces}/full/gradio_api/call/submit_results", method="POST")
    statuses: list[int] = []
    while not statuses or statuses[-1] == 200:
        body = json.dumps({"data": ["first", 4, *[1] * 9]}).encode()
        try:
            with urllib.request.urlopen(raw(data=body, headers={"Content-Type": "application/json"})) as reply:
                statuses.append(reply.status)
        except urllib.error.HTTPError as error:
            statuses.append(error.code)
    assert statuses[-1] == 503

    row = match_labels(labels).row(values_of(Result.from_fields(result_fields(32)), "Team"))
    for delivery in board.submit(row, PATIENCE_S):
        if delivery.state is State.PENDING:
            assert "HTTP 503: Queue is full" in delivery.message
            urllib.request.urlopen(f"{spaces}/release").close()
    assert delivery.state is State.ACCEPTED
    with urllib.request.urlopen(f"{spaces}/rows") as reply:
        assert [row[:2] for row in json.load(reply)].count(["Team", 32]) == 1


@pytest.mark.gradio
@pytest.mark.parametrize(
    ("path", "message"),
    [("/locked", "HTTP 401"), ("/nowhere", "HTTP 404")],
)
def test_space_that_cannot_be_asked(spaces: str, path: str, message: str) -> None:
    """A Space with a password, and a path without an app."""
    with pytest.raises(LeaderboardError) as caught:
        Leaderboard(spaces + path).labels(0.1)
    assert message in str(caught.value)


# -- a sweep --------------------------------------------------------------------------------------------------

POINTS = ("--isl", "16", "--osl", "32", "--conc", "2,4", "--num-prompts", "8")


@pytest.mark.gradio
def test_external_server_to_sqlite(project: Project, board: tuple[str, Path], shared: Path) -> None:
    """From command line to row: each point once, in the order of CONC, every digit."""
    (url, database), team = board, "Team 'A' \N{ROCKET}"
    gate = with_baseline(project, shared / "data" / "wikitext2_raw_test_rows.jsonl")
    with scoring_server(tp_size=2) as server:
        submit = ("--mode", "submit", "--leaderboard-url", url, "--server-url", server.url)
        project.environment["TEAM_NAME_ENV"] = team
        outcome = project.run(*POINTS, *gate, *submit)
        assert outcome.status == 0, outcome
        rows = stored(database, team)
        again = project.run("--submit-pending", str(project.batch))
        assert again.status == 0, again
        assert stored(database, team) == rows
    assert [(row["isl"], row["osl"], row["conc"]) for row in rows] == [(16, 32, 2), (16, 32, 4)]
    for row in rows:
        result = json.loads((project.batch / f"result_isl16_osl32_conc{row['conc']}.json").read_text())
        assert result["engine"] == "external"
        for name in ("median_e2el_ms", "tput_per_gpu", "interactivity"):
            assert row[name] == result[name]
        assert row["word_perplexity"] == result["accuracy"]["word_perplexity"]
        assert row["b200_median_e2e_1126"] is None
    assert "CONC 2: submitted, event " in outcome.output
    assert f"submission to {url}, CONC=4: submitted, event " in project.summary()


@pytest.mark.gradio
def test_launched_server_to_sqlite(project: Project, board: tuple[str, Path], shared: Path) -> None:
    """A launched server is stopped, then its results are submitted."""
    (url, database), team = board, "Launchers"
    gate = with_baseline(project, shared / "data" / "wikitext2_raw_test_rows.jsonl")
    recipe = write_recipe(project.folder, server_info={"bos_token_id": 256})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    launch = ("--engine", "sglang", "--recipe", str(recipe), "--port", str(port), "--model", "scripted")
    submit = ("--submit-team", team, "--leaderboard-url", url)
    outcome = project.run(*POINTS, "--conc", "2", *gate, *submit, *launch)
    assert outcome.status == 0, outcome
    assert [row["conc"] for row in stored(database, team)] == [2]
    result = json.loads((project.batch / "result_isl16_osl32_conc2.json").read_text())
    assert result["engine"] == "sglang"
    assert holder_of(port) is None


@pytest.mark.gradio
def test_rehearsal_of_the_reference_engine(project: Project, gradio6_python: str) -> None:
    """To this machine only, as the header says; each scenario has its own board."""
    gate = with_baseline(project, None)
    with (
        own_leaderboard(gradio6_python, project.folder, "--scenario", "16/32,8/16") as (url, database),
        scoring_server(engine="pytest-dsr1-reference") as server,
    ):
        boards = f"{url}/isl{{isl}}osl{{osl}}"
        points = ("--scenario", "16/32,8/16", "--conc", "2", "--num-prompts", "8", "--server-url", server.url)
        outcome = project.run(*points, *gate, "--submit-team", "Team", "--leaderboard-url", boards)
        assert outcome.status == 0, outcome
        assert [(row["isl"], row["osl"], row["conc"]) for row in stored(database, "Team")] == [(8, 16, 2), (16, 32, 2)]
    assert f"dsr1: submits to {url}/isl16osl32 (a rehearsal on this machine)" in outcome.output
    assert outcome.output.count("CONC 2: submitted, event ") == 2


def fourteen_optional() -> Sequence[str]:
    return [field.label + ("" if place < 4 else IF_KNOWN) for place, field in enumerate(FIELDS_14)]


def test_interrupted_session_submits_nothing(project: Project) -> None:
    """Finished points are in the outbox; the command that is printed sends them."""
    gate = with_baseline(project, None)
    with (
        scoring_server(engine="pytest-dsr1-reference") as server,
        scripted_space(labels=fourteen_optional()) as space,
    ):
        submit = ("--server-url", server.url, "--submit-team", "Team", "--leaderboard-url", space.url)
        process = project.start(*POINTS, *submit, *gate)
        wait_until(lambda: len(server.truth()["requests"]) >= 14, "the second point's load")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2, output
        assert space.count("POST") == 0
        folder = str(project.batch.relative_to(project.folder))
        assert "CONC 2: pending: the session was interrupted" in output
        assert f"send what is pending with: pytest --submit-pending {folder}" in output
        assert [record.state for record in Outbox(project.batch).latest().values()] == [State.PENDING]

        sent = project.run("--submit-pending", folder)
        assert sent.status == 0, sent
        assert space.count("POST") == 1
        assert project.summary().count("CONC=2: submitted") == 1
        assert "pending" not in project.summary()


def test_conftest_objects_to_a_result(project: Project) -> None:
    """`pytest_dsr1_objections` keeps one back, with its reason in the summary; the other one is sent."""
    gate = with_baseline(project, None)
    project.write(
        "conftest.py",
        "def pytest_dsr1_objections(config, result, loopback):",
        "    return [f'not today, loopback={loopback}'] if result.point.conc == 2 else None",
    )
    with (
        scoring_server(engine="pytest-dsr1-reference") as server,
        scripted_space(labels=fourteen_optional()) as space,
    ):
        submit = ("--server-url", server.url, "--submit-team", "Team", "--leaderboard-url", space.url)
        outcome = project.run(*POINTS, *submit, *gate)
        assert outcome.status == 1, outcome
        assert space.count("POST") == 1
    assert "CONC=2: refused: not today, loopback=True" in project.summary()
    assert "CONC=4: submitted" in project.summary()


# -- before anything runs -------------------------------------------------------------------------------------


def refused(project: Project, *args: str) -> Outcome:
    outcome = project.run("--isl", "16", "--osl", "32", *args)
    assert outcome.status == 4, outcome
    assert not project.batches
    return outcome


def test_other_schema_is_a_usage_error(project: Project) -> None:
    """Before a server is looked for; the message has both lists."""
    with scripted_space(labels=(*SEED_LABELS, "Model", "GPU")) as space:
        outcome = refused(project, "--submit-team", "T", "--leaderboard-url", space.url, "--server-url", "http://h:1")
    assert "takes 13 values" in outcome.output
    assert "13. GPU" in outcome.output
    assert space.count("POST") == 0


def test_missing_b200_figures_are_a_usage_error(project: Project) -> None:
    """A leaderboard that requires them could not take any result of these lengths."""
    with scripted_space() as space:
        outcome = refused(project, "--submit-team", "T", "--leaderboard-url", space.url, "--server-url", "http://h:1")
    assert "B200" in outcome.output
    assert "ISL/OSL 16/32 at CONC 4, 8, 16, 32, 64" in outcome.output


def test_reference_engine_is_a_usage_error(project: Project) -> None:
    """The message says why no other server was chosen, and how to rehearse."""
    outcome = refused(project, "--submit-team", "T", "--port", "1")
    assert "no server answers at http://127.0.0.1:1" in outcome.output
    assert "no GPU is visible for SGLang" in outcome.output
    assert "pytest-dsr1 leaderboard serve" in outcome.output
    assert "nothing to submit to" not in outcome.output


def test_unknown_number_of_gpus_is_a_usage_error(project: Project) -> None:
    """Without it there is no throughput per GPU."""
    with scoring_server() as server:
        outcome = refused(project, "--submit-team", "T", "--server-url", server.url)
    assert "type --tp N" in outcome.output


# -- its page -------------------------------------------------------------------------------------------------


@pytest.mark.gradio
@pytest.mark.browser
def test_page_in_a_browser(tmp_path: Path, gradio6_python: str) -> None:
    """Teams are sorted by points, and the plot has a line for each."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    with own_leaderboard(gradio6_python, tmp_path) as (url, _):
        board = Leaderboard(url)
        schema = match_labels(board.labels(PATIENCE_S))
        for team, tput in (("Slow", 500.0), ("Fast & <b>bold</b>", 1500.0), ("Middle", 1000.0)):
            fields = {name: value for name, value in result_fields().items() if "_ratio_" not in name}
            for conc in (4, 8):
                row = fields | {"tput_per_gpu": conc * tput, "benchmark_args": result_fields(conc)["benchmark_args"]}
                *_, outcome = board.submit(schema.row(values_of(Result.from_fields(row), team)), PATIENCE_S)
                assert outcome.state is State.ACCEPTED
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        flags += " --disable-component-update --disable-sync --virtual-time-budget=15000 --window-size=1280,1200"
        page = subprocess.run(
            [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", url],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
    places = [page.find(name) for name in ("Fast &amp; &lt;b&gt;bold&lt;/b&gt;", "Middle", "Slow")]
    assert -1 not in places
    assert places == sorted(places)
    assert page.count('aria-roledescription="line mark"') == 3
