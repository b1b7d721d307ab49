"""Gradio's event streams, however they are cut; the outbox after a crash."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.submit.events import Delivery, delivery_of, parse_events
from pytest_dsr1.submit.events import SubmissionState as State
from pytest_dsr1.submit.send import Outbox, Record

#: Seen on Gradio 6.31, 5.49 and 4.44.
SEEN = [
    ("heartbeat", "null", None),
    ("generating", '["half"]', None),
    (
        "complete",
        '["ok row 3", {"headers": ["a"], "data": [[1]], "metadata": null}]',
        (State.ACCEPTED, "ok row 3"),
    ),
    ("complete", "[null]", (State.ACCEPTED, "")),
    ("complete", "[]", (State.ACCEPTED, "")),
    ("complete", "cut", (State.ACCEPTED, "")),
    ("error", '{"error": null}', (State.REFUSED, "its handler failed and gave no reason")),
    ("error", "null", (State.REFUSED, "its handler failed and gave no reason")),
    ("error", '{"error": "boom: gone", "visible": true}', (State.REFUSED, "boom: gone")),
    (
        "error",
        '{"error": "too good", "duration": 10, "visible": true, "title": "Error"}',
        (State.REFUSED, "too good"),
    ),
    ("error", '"a text"', (State.REFUSED, "a text")),
    ("error", "no JSON", (State.REFUSED, "no JSON")),
    ("error", "", (State.REFUSED, "its handler failed and gave no reason")),
]


@pytest.mark.parametrize(("name", "data", "expected"), SEEN, ids=lambda value: str(value)[:30])
def test_every_form_of_event(name: str, data: str, expected: tuple[State, str] | None) -> None:
    """A heartbeat is no outcome; an outcome has a state and a message."""
    assert delivery_of(name, data) == (None if expected is None else Delivery(*expected))


def test_forgotten_submission_is_unknown() -> None:
    """HTTP 200 with a 404 in an error event: the handler may have run all the same."""
    found = delivery_of("error", '"404: Not Found"')
    assert found is not None
    assert found.state is State.UNKNOWN


TEXTS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    events=st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), max_size=4),
    newline=st.sampled_from(["\n", "\r\n"]),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    lost=st.booleans(),
)
def test_events_do_not_depend_on_how_bytes_arrive(
    events: list[tuple[str, list[str]]], newline: str, cuts: list[int], lost: bool
) -> None:
    """Cut anywhere, within a character too; what is cut off at the end is no event."""
    blocks = [
        newline.join([f"event: {name}", ": a comment", *(f"data: {line}" for line in data), "", ""]).encode()
        for name, data in events
    ]
    stream = b"".join(blocks)
    if lost and stream:
        stream = stream[: -len(newline.encode())]
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    found = list(parse_events(stream[begin:end] for begin, end in pairwise(places)))
    expected = [(name, "\n".join(data)) for name, data in events]
    assert found == (expected[:-1] if lost else expected)


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_parser_takes_any_bytes(chunks: list[bytes]) -> None:
    """Arbitrary bytes and the events in them never raise an exception."""
    for name, data in parse_events(chunks):
        delivery_of(name, data)


# -- the outbox -----------------------------------------------------------------------------------------------


def record(state: State, key: str = "k", event_id: str = "") -> Record:
    data: list[str | int | float | None] = ["T \N{ROCKET}", 4, 0.1 + 0.2]
    return Record(key=key, url="http://h", conc=4, state=state, data=data, event_id=event_id)


def test_last_record_of_each_key_counts(tmp_path: Path) -> None:
    """Every change stays in the file, one line each."""
    outbox = Outbox(tmp_path)
    assert outbox.latest() == {}
    for one in (
        record(State.PENDING),
        record(State.PENDING, "other"),
        record(State.ACCEPTED, event_id="e"),
    ):
        outbox.append(one)
    latest = outbox.latest()
    assert (latest["k"].state, latest["k"].event_id, latest["other"].state) == (
        State.ACCEPTED,
        "e",
        State.PENDING,
    )
    assert latest["k"].data == ["T \N{ROCKET}", 4, 0.1 + 0.2]
    assert len(outbox.path.read_text().splitlines()) == 3


def test_version_1_is_read(tmp_path: Path) -> None:
    """A line as earlier releases wrote it: ASCII only, any order of keys."""
    line = (
        r'{"version": 1, "key": "k", "url": "http://h", "conc": 4, "state": "accepted", "message": "ok \ud83d\ude80", '
        r'"event_id": "e", "data": ["T", 4, 0.5, 3.0, null], "time": 1764018726.5}'
    )
    outbox = Outbox(tmp_path)
    outbox.path.write_text(line + "\n")
    found = outbox.latest()["k"]
    assert (found.state, found.message, found.time) == (State.ACCEPTED, "ok \N{ROCKET}", 1764018726.5)
    assert found.data == ["T", 4, 0.5, 3.0, None]


def test_killed_while_sending_is_unknown(tmp_path: Path) -> None:
    """If the process ended while sending, nothing says whether the row arrived."""
    outbox = Outbox(tmp_path)
    outbox.append(record(State.SENDING))
    assert outbox.latest()["k"].state is State.UNKNOWN


def test_every_cut_of_the_last_line_leaves_the_rest(tmp_path: Path) -> None:
    """An incomplete last line does not count, and the next one does not continue it."""
    outbox = Outbox(tmp_path)
    outbox.append(record(State.PENDING))
    before = outbox.path.read_bytes()
    outbox.append(record(State.ACCEPTED))
    whole = outbox.path.read_bytes()
    for end in range(len(before), len(whole) - 1):
        outbox.path.write_bytes(whole[:end])
        assert outbox.latest()["k"].state is State.PENDING
        outbox.append(record(State.REFUSED))
        assert outbox.latest()["k"].state is State.REFUSED


@given(st.binary(max_size=200))
def test_damage_is_left_out(damage: bytes) -> None:
    """Lines that are not ours are skipped without an exception."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        outbox = Outbox(Path(folder))
        outbox.path.write_bytes(damage + b"\n" + json.dumps({"version": 99, "key": "k"}).encode() + b"\n[1]\nnull\n")
        outbox.append(record(State.ACCEPTED, "mine"))
        assert outbox.latest()["mine"].state is State.ACCEPTED
