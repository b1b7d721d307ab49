"""What a leaderboard's answers do to outbox, summary and exit status."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_dsr1.batch.journal import Journal
from pytest_dsr1.submit import client
from pytest_dsr1.submit.events import SubmissionState as State
from pytest_dsr1.submit.plugin import submit_pending
from pytest_dsr1.submit.send import Outbox
from tests.batches import finished_batch
from tests.project import Project, wait_until
from tests.servers.scripted_space import (
    ASLEEP,
    COMPLETE,
    POSTED,
    QUEUE_FULL,
    SEED_LABELS,
    Reply,
    ScriptedSpace,
    event,
    scripted_space,
)

TOKEN = "hf_secretsecretsecret"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scripted Space needs no pauses."""
    monkeypatch.setattr(client, "BACK_OFF_S", (0.001, 0.01))


@pytest.fixture
def space() -> Iterator[ScriptedSpace]:
    with scripted_space() as space:
        yield space


def send(journal: Journal, *flags: str, token: str = "", timeout_s: str = "30") -> int:
    """`pytest --submit-pending FOLDER FLAGS` without the process; its exit status."""
    typed = {"--submit-pending": str(journal.folder), "--submit-timeout": timeout_s, **dict.fromkeys(flags, True)}
    return submit_pending(typed, {"HF_TOKEN": token}, journal.folder)


def states(journal: Journal) -> list[State]:
    """Of every submission, by CONC."""
    return [record.state for record in sorted(Outbox(journal.folder).latest().values(), key=lambda one: one.conc)]


def note(journal: Journal, conc: int = 4) -> str:
    """What summary.txt says of a submission."""
    lines = (journal.folder / "summary.txt").read_text().splitlines()
    found = [line.partition(": ")[2] for line in lines if line.startswith("submission") and f"CONC={conc}:" in line]
    assert len(found) == 1, lines
    return found[0]


EVENT = "0123456789abcdef0123456789abcdef"

AWAKE = Reply(body=b'{"api_prefix": "/gradio_api"}')
#: Script, state, words of the summary.
CASES: dict[str, tuple[dict[str, list[Reply]], State, str]] = {
    "complete": ({}, State.ACCEPTED, f"submitted, event {EVENT}: ok row 1"),
    "error null": ({"get": [event("error", "null")]}, State.REFUSED, "its handler failed and gave no reason"),
    "error object null": ({"get": [event("error", '{"error": null}')]}, State.REFUSED, "gave no reason"),
    "error text": (
        {"get": [event("error", '{"error": "too good"}')]},
        State.REFUSED,
        "leaderboard: too good",
    ),
    "404 event": (
        {"get": [event("error", '"404: Not Found"')]},
        State.UNKNOWN,
        "does not know the submission",
    ),
    "503 three times": ({"post": [QUEUE_FULL] * 3 + [POSTED]}, State.ACCEPTED, "submitted"),
    "asleep, then awake": ({"config": [ASLEEP, ASLEEP, AWAKE]}, State.ACCEPTED, "submitted"),
    "asleep at the POST": ({"post": [ASLEEP, POSTED]}, State.ACCEPTED, "submitted"),
    "lost after the POST": (
        {"post": [Reply(lost=True)]},
        State.UNKNOWN,
        "the connection was lost after the row was sent",
    ),
    "lost while waiting": (
        {"get": [Reply(lost=True)]},
        State.UNKNOWN,
        "the connection was lost while waiting",
    ),
    "truncated event": (
        {"get": [Reply(body=b'event: complete\ndata: ["ok')]},
        State.UNKNOWN,
        "closed without an outcome",
    ),
    "GET refused": ({"get": [Reply(status=500)]}, State.UNKNOWN, "answered HTTP 500"),
    "proxy": ({"post": [Reply(status=502)]}, State.UNKNOWN, "a proxy answered HTTP 502"),
    "no event id": ({"post": [Reply(body=b"{}")]}, State.UNKNOWN, "has no event_id"),
    "422": ({"post": [Reply(status=422, body=b'{"detail": "bad"}')]}, State.REFUSED, "HTTP 422: bad"),
    "500": (
        {"post": [Reply(status=500, body=b"Internal Server Error")]},
        State.REFUSED,
        "HTTP 500: Internal",
    ),
    "401": (
        {"config": [Reply(status=401)]},
        State.PENDING,
        "HTTP 401); a private Space needs HF_TOKEN",
    ),
    "no endpoint": (
        {"config": [Reply(body=b'{"api_prefix": ""}')], "get": [Reply(body=b'{"named_endpoints": {}}')]},
        State.PENDING,
        "has no endpoint /submit_results",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_answer(case: str, tmp_path: Path) -> None:
    """State, summary, exit status; no second POST of a row that may have arrived."""
    script, state, words = CASES[case]
    with scripted_space(**script) as space:
        journal = finished_batch(tmp_path, space.url)
        assert send(journal) == (0 if state is State.ACCEPTED else 1)
        assert states(journal) == [state]
        assert words in note(journal)
        posts = {"503 three times": 4, "asleep at the POST": 2, "401": 0, "no endpoint": 0}.get(case, 1)
        assert space.count("POST") == posts
        assert space.count("GET", f"/gradio_api/call/submit_results/{EVENT}") <= 1


@pytest.mark.parametrize(
    ("script", "state", "words"),
    [
        ({"get": [Reply(endless=True)]}, State.UNKNOWN, "no outcome before the deadline"),
        ({"post": [QUEUE_FULL]}, State.PENDING, "HTTP 503: Queue is full. Max size is 3 and size is 3."),
        ({"config": [ASLEEP]}, State.PENDING, "answers with HTML"),
    ],
    ids=["heartbeats", "full", "asleep"],
)
def test_total_deadline(script: dict[str, list[Reply]], state: State, words: str, tmp_path: Path) -> None:
    """--submit-timeout ends every wait; a row that was not received stays pending."""
    with scripted_space(**script) as space:
        journal = finished_batch(tmp_path, space.url)
        assert send(journal, timeout_s="2") == 1
        assert states(journal) == [state]
        assert words in note(journal)


def test_offline_is_pending_and_sent_later(tmp_path: Path) -> None:
    """If a leaderboard does not answer, its rows are pending and may go to another."""
    with scripted_space() as space:
        journal = finished_batch(tmp_path, space.url, (8, 4))
    assert send(journal, timeout_s="0.1") == 1
    assert states(journal) == [State.PENDING, State.PENDING]
    assert "cannot be reached (ConnectionError)" in note(journal, 8)
    with scripted_space() as elsewhere:
        typed = {"--submit-pending": str(journal.folder), "--leaderboard-url": elsewhere.url}
        assert submit_pending(typed, {}, journal.folder) == 0
        assert elsewhere.count("POST") == 2


def test_accepted_is_never_sent_again(space: ScriptedSpace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not even with --yes; the stored answer is shown."""
    journal = finished_batch(tmp_path, space.url, (8, 4))
    assert send(journal) == 0
    assert send(journal, "--yes") == 0
    assert space.count("POST") == 2
    assert [b", 4," in body for method, _, _, body in space.requests if method == "POST"] == [True, False]
    assert capsys.readouterr().out.count(f"CONC 4: submitted, event {EVENT}: ok row 1") == 2


def test_unknown_is_repeated_only_if_somebody_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, only --yes repeats it."""
    with scripted_space(post=[Reply(lost=True), POSTED]) as space:
        journal = finished_batch(tmp_path, space.url)
        assert send(journal) == 1
        assert send(journal) == 1
        assert space.count("POST") == 1
        assert "type --yes" in capsys.readouterr().out
        assert send(journal, "--yes") == 0
        assert states(journal) == [State.ACCEPTED]


def test_asked_and_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the user decides."""
    answers = iter(["n", "y"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _question: next(answers))
    with scripted_space(post=[Reply(lost=True), POSTED]) as space:
        journal = finished_batch(tmp_path, space.url)
        assert [send(journal), send(journal), send(journal)] == [1, 1, 0]
        assert space.count("POST") == 2


def test_repeating_an_unknown_one_in_vain_leaves_it_unknown(tmp_path: Path) -> None:
    """If nothing arrived the second time, the first time is still unknown."""
    with scripted_space(post=[Reply(lost=True), QUEUE_FULL]) as space:
        journal = finished_batch(tmp_path, space.url)
        send(journal)
        assert send(journal, "--yes", timeout_s="0.2") == 1
        assert states(journal) == [State.UNKNOWN]


def test_measured_again_is_another_submission(space: ScriptedSpace, tmp_path: Path) -> None:
    """Other figures are sent, although an earlier result of the point was accepted."""
    assert send(finished_batch(tmp_path, space.url)) == 0
    assert send(finished_batch(tmp_path, space.url, median_e2el_ms=15000.5)) == 0
    assert space.count("POST") == 2


def test_ineligible_result_is_refused_here(space: ScriptedSpace, tmp_path: Path) -> None:
    """The leaderboard gets no request; the summary has the reason."""
    journal = finished_batch(tmp_path, space.url, accuracy_validation={"status": "NOT RUN"})
    assert send(journal) == 0
    assert note(journal) == "refused: accuracy is NOT RUN"
    assert space.requests == []


@pytest.mark.parametrize(
    ("labels", "words"),
    [(SEED_LABELS[:10], "takes 10 values"), ((*SEED_LABELS[:2], *SEED_LABELS[3:1:-1], *SEED_LABELS[4:]), "order")],
    ids=["count", "order"],
)
def test_other_schema_keeps_everything_pending(labels: tuple[str, ...], words: str, tmp_path: Path) -> None:
    """Gradio would accept the values and put them into the wrong columns."""
    with scripted_space(labels=labels) as space:
        journal = finished_batch(tmp_path, space.url)
        assert send(journal) == 1
        assert states(journal) == [State.PENDING]
        assert words in note(journal)
        assert space.count("POST") == 0


def test_unknown_labels_are_accepted_once(tmp_path: Path) -> None:
    """--accept-schema is remembered for these labels of this leaderboard only."""
    with scripted_space(labels=(*SEED_LABELS[:10], "PPL?")) as space:
        assert send(finished_batch(tmp_path, space.url)) == 1
        assert space.count("POST") == 0
        assert send(finished_batch(tmp_path, space.url), "--accept-schema") == 0
        assert send(finished_batch(tmp_path, space.url, tput_per_gpu=1000.5)) == 0
        space.labels = (*SEED_LABELS[:10], "PPL!")
        assert send(finished_batch(tmp_path, space.url, tput_per_gpu=1001.5)) == 1


# -- the token ------------------------------------------------------------------------------------------------


def everything_written(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def test_token_only_where_it_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only a private leaderboard gets it, in a header; its echo is not shown."""
    private = {
        "config": [Reply(status=404), Reply(body=b'{"api_prefix": "/gradio_api"}')],
        "get": [event("complete", f'["hello {TOKEN}"]')],
    }
    with scripted_space() as public, scripted_space(**private) as space:
        assert send(finished_batch(tmp_path / "public", public.url), token=TOKEN) == 0
        assert all(TOKEN not in str(request) for request in public.requests)
        assert send(finished_batch(tmp_path / "private", space.url), token=TOKEN) == 0
    assert [headers.get("Authorization") for _, _, headers, _ in space.requests] == [None] + [f"Bearer {TOKEN}"] * 4
    assert all(TOKEN not in f"{path}{body!r}" for _, path, _, body in space.requests)
    assert "hello [HF_TOKEN]" in capsys.readouterr().out
    assert TOKEN not in everything_written(tmp_path)


@pytest.mark.parametrize("where", ["config", "post"])
def test_redirect_is_not_followed(where: str, tmp_path: Path) -> None:
    """Neither the token nor a row goes to a host that nobody typed."""
    with scripted_space() as other:
        away = Reply(status=307, headers={"Location": f"{other.url}/{TOKEN}"})
        configured = Reply(body=b'{"api_prefix": "/gradio_api"}')
        script = {"config": [Reply(status=401), away if where == "config" else configured], "post": [away]}
        with scripted_space(**script) as space:
            journal = finished_batch(tmp_path, space.url)
            assert send(journal, token=TOKEN) == 1
            assert states(journal) == [State.PENDING]
            assert "redirects to 127.0.0.1; type the URL where it ends" in note(journal)
    assert other.requests == []
    assert TOKEN not in everything_written(tmp_path)


def test_token_that_is_no_header_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """requests would quote it in the error about the header."""
    with scripted_space(config=[Reply(status=401)]) as space:
        assert send(finished_batch(tmp_path, space.url), token="hf_a\nb") == 1
    assert "hf_a" not in capsys.readouterr().out + everything_written(tmp_path)


# -- processes ------------------------------------------------------------------------------------------------


def test_killed_between_post_and_answer(project: Project) -> None:
    """The state is unknown, and only --yes sends a second time."""
    with scripted_space(post=[Reply(held=True), POSTED], get=[COMPLETE]) as space:
        journal = finished_batch(project.folder / "reports", space.url)
        folder = str(journal.folder.relative_to(project.folder))
        process = project.start("--submit-pending", folder)
        wait_until(lambda: space.count("POST") == 1, "the POST")
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert states(journal) == [State.UNKNOWN]

        unasked = project.run("--submit-pending", folder)
        assert unasked.status == 1, unasked
        assert "CONC=4 was sent" in unasked.output
        assert "CONC 4: unknown: " in unasked.output
        assert space.count("POST") == 1

        repeated = project.run("--submit-pending", folder, "--yes")
        assert repeated.status == 0, repeated
        assert f"CONC 4: submitted, event {EVENT}: ok row 1" in repeated.output
        assert space.count("POST") == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--isl", "8", "--osl", "4"), "--submit-pending .* --isl"),
        ((), "reports is no batch folder"),
    ],
    ids=["lengths", "folder"],
)
def test_submit_pending_stands_alone(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """It takes its options from the folder."""
    (tmp_path / "reports").mkdir()
    typed = {"--submit-pending": str(tmp_path / "reports"), **dict(zip(args[::2], args[1::2], strict=True))}
    with pytest.raises(pytest.UsageError, match=message):
        submit_pending(typed, {}, tmp_path)
