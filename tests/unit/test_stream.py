"""The bytes of a response, cut anywhere, and what is made of them."""

from __future__ import annotations

import itertools
import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.core.samples import Outcome
from pytest_dsr1.load.closed_loop import outcome_of
from pytest_dsr1.load.stream import Reply, read_reply, split_events

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def token(text: str = " a", reason: str | None = None, usage: object = None) -> dict[str, Any]:
    """What an event says that carries a token."""
    return {"choices": [{"index": 0, "text": text, "finish_reason": reason}], "usage": usage}


GOOD = [token(), token(" é🙂"), token("", "length"), {"choices": [], "usage": USAGE}]


def body_of(contents: Sequence[object], *, newline: str = "\n", done: bool = True) -> bytes:
    """An event stream."""
    said = [content if isinstance(content, str) else json.dumps(content, ensure_ascii=False) for content in contents]
    return "".join(f"data: {data}{newline * 2}" for data in [*said, *(["[DONE]"] if done else [])]).encode()


def chunked(pieces: Sequence[bytes]) -> bytes:
    """A chunked response; a chunk for each piece."""
    return chunked_with_places(pieces)[0]


def chunked_with_places(pieces: Sequence[bytes]) -> tuple[bytes, list[int]]:
    """The same, and where in it each byte of the body is."""
    data = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    places: list[int] = []
    for piece in filter(None, pieces):
        data += b"%x\r\n" % len(piece)
        places += range(len(data), len(data) + len(piece))
        data += piece + b"\r\n"
    return data + b"0\r\n\r\n", places


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The data in pieces that end at `places`."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def read(data: bytes) -> Reply:
    """A response that came in one read."""
    return read_reply([data], [1])


def outcome_for(contents: Sequence[object], *, done: bool = True, ending: Outcome = Outcome.OK) -> tuple[Outcome, str]:
    """The outcome of a stream, for a request of 5 + 3 tokens."""
    return outcome_of(read(chunked([body_of(contents, done=done)])), ending, "a note", 5, 3)


@given(
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    in_chunks=st.lists(st.integers(0, 2000), max_size=8),
    in_reads=st.lists(st.integers(0, 2000), max_size=12),
)
def test_cuts_do_not_matter_but_for_times(newline: str, in_chunks: list[int], in_reads: list[int]) -> None:
    """The result does not depend on the cuts; an event has the time of its last read."""
    body = body_of(GOOD, newline=newline)
    data, places = chunked_with_places(cut(body, in_chunks))
    reads = cut(data, in_reads)
    reply = read_reply(reads, range(len(reads)))
    assert (reply.status, reply.done, reply.usage, reply.finish_reason) == (200, True, USAGE, "length")
    assert (reply.error, reply.malformed) == (None, None)
    assert outcome_of(reply, Outcome.OK, "", 5, 3) == (Outcome.OK, "")
    # The last byte of each event's blank line, and the read that brought it.
    ends = [places[event.end() - 1] for event in re.finditer((newline * 2).encode(), body)]
    last_bytes = list(itertools.accumulate(map(len, reads)))
    assert reply.event_ns.tolist() == [bisect_right(last_bytes, end) for end in ends[:3]]


@given(st.integers(0, 600))
def test_an_event_ends_with_its_blank_line(place: int) -> None:
    """A read that stops short of the last byte of an event does not have it."""
    body = body_of(GOOD)
    head, data = HEAD + b"\r\n", body
    place %= len(data)
    reply = read_reply([head, data[:place], data[place:]], [1, 2, 3])
    ends = split_events(body)[0].ends[:3]
    assert reply.event_ns.tolist() == [2 if end <= place else 3 for end in ends]


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_no_bytes_whatever_are_an_error_of_ours(data: bytes, places: list[int]) -> None:
    """Random bytes, with or without a valid head, are a failure and never raise."""
    for whole in (data, HEAD + b"\r\n" + data, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + data):
        reads = cut(whole, places)
        reply = read_reply(reads, range(len(reads)))
        assert outcome_of(reply, Outcome.TRUNCATED, "", 5, 3)[0] is not Outcome.OK


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda c: (
            st.lists(c)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "usage",
                        "error",
                        "message",
                        "object",
                        "prompt_tokens",
                        "completion_tokens",
                        "finish_reason",
                        "prompt_tokens_details",
                        "cached_tokens",
                    ]
                ),
                c,
            )
        ),
        max_leaves=12,
    )
)
def test_no_json_whatever_is_an_error_of_ours(content: object) -> None:
    """Events of any shape get a verdict."""
    assert outcome_for([token(), content])[0] is not Outcome.OK


@pytest.mark.parametrize(
    ("block", "data"),
    [
        (b"data: x\n\n", [b"x"]),
        (b"data:x\n\n", [b"x"]),
        (b"data:  x\n\n", [b" x"]),
        (b"data: x\ndata: y\n\n", [b"x\ny"]),
        (b"id: 1\nretry: 5\ndata: x\n\n", [b"x"]),
        (b": ping\n\ndata: x\n\n", [b"x"]),
        (b": ping\ndata: x\n\n", [b"x"]),
        (b"\n\n\ndata: x\n\n\n\n", [b"x"]),
        (b"\xef\xbb\xbfdata: x\n\n", [b"x"]),
        (b"data: x\r\n\r\ndata: y\r\rdata: z\n\n", [b"x", b"y", b"z"]),
        (b"data: x\r\n", []),
        (b"data: x\n", []),
        (b"event: ping\n\n", []),
        (b"data\n\n", [b""]),
        (b"", []),
    ],
)
def test_events(block: bytes, data: list[bytes]) -> None:
    """Lines, fields, comments and blank lines are as the standard has them."""
    assert split_events(block)[0].data == data


def test_a_good_stream_is_ok() -> None:
    """Usage as asked for, [DONE], and times."""
    assert outcome_for(GOOD) == (Outcome.OK, "")


@pytest.mark.parametrize(
    "contents",
    [
        pytest.param([token(), token(), token("", "length", USAGE)], id="with the last choices"),
        pytest.param(
            [token(usage={"prompt_tokens": 5, "completion_tokens": 1}), token("x", "stop", USAGE)], id="continuous"
        ),
        pytest.param([token(), token(), {"choices": [], "usage": USAGE}, {"choices": []}], id="not in the last event"),
    ],
)
def test_usage_may_come_anywhere(contents: list[object]) -> None:
    """In an event of its own, with choices, or in all events: the last one counts."""
    reply = read(chunked([body_of(contents)]))
    assert reply.usage == USAGE
    assert outcome_of(reply, Outcome.OK, "", 5, 3)[0] is Outcome.OK


def test_events_are_counted_by_choices() -> None:
    """Usage, [DONE], comments and events with empty choices do not count."""
    body = b": hi\n\n" + body_of([{"choices": []}, token(), {"choices": [], "usage": USAGE}])
    assert len(read(chunked([body])).event_ns) == 1


def test_cached_tokens_are_told() -> None:
    """They are in prompt_tokens_details, where the server sends it."""
    usage = USAGE | {"prompt_tokens_details": {"cached_tokens": 4}}
    assert read(chunked([body_of([token(), {"choices": [], "usage": usage}])])).cached_tokens == 4
    assert read(chunked([body_of(GOOD)])).cached_tokens is None
    assert read(chunked([body_of([token(usage=USAGE | {"prompt_tokens_details": None})])])).cached_tokens is None


def test_done_needs_no_blank_line() -> None:
    """The last event of all is understood without one, though it has no time."""
    reply = read(chunked([body_of(GOOD)[:-2]]))
    assert reply.done


def test_nothing_counts_behind_done() -> None:
    """What a server says after [DONE] is not part of the stream."""
    reply = read(chunked([body_of(GOOD) + body_of([token(), {"error": "late"}])]))
    assert (len(reply.event_ns), reply.error) == (3, None)


def test_an_interim_response_is_not_the_response() -> None:
    """100 and 103 announce one."""
    data = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + chunked([body_of(GOOD)])
    reply = read_reply([data[:60], data[60:]], [1, 2])
    assert outcome_of(reply, Outcome.OK, "", 5, 3)[0] is Outcome.OK


def test_bytes_behind_the_response_are_not_part_of_it() -> None:
    """A second response, or garbage, changes nothing about the first."""
    for more in (chunked([body_of([{"error": "x"}])]), b"garbage\r\n\r\n"):
        reply = read(chunked([body_of(GOOD)]) + more)
        assert outcome_of(reply, Outcome.OK, "", 5, 3) == (Outcome.OK, "")


@pytest.mark.parametrize(
    ("contents", "outcome", "detail"),
    [
        (
            [token(), {"error": {"message": "out of  memory\n"}}],
            Outcome.STREAM_ERROR,
            "error after 1 event with choices: out of memory",
        ),
        (
            [{"object": "error", "message": "no", "code": 500}],
            Outcome.STREAM_ERROR,
            "error after 0 events with choices: no",
        ),
        ([{"error": "plain"}], Outcome.STREAM_ERROR, "plain"),
        ([{"detail": "x", "error": True}], Outcome.STREAM_ERROR, "True"),
        ([token(), '{"choices":'], Outcome.MALFORMED, "not JSON"),
        ([token(), "1,2"], Outcome.MALFORMED, "not JSON"),
        ([token(), "3"], Outcome.MALFORMED, "not a JSON object"),
        ([{"choices": ["x"]}], Outcome.MALFORMED, "malformed choices"),
        ([{"choices": {"a": 1}}], Outcome.MALFORMED, "malformed choices"),
        ([token(usage=[1])], Outcome.MALFORMED, "malformed usage"),
        ([token(), token("", "length")], Outcome.MALFORMED, "no usage"),
        ([token(usage={"prompt_tokens": 5})], Outcome.MALFORMED, "without token counts"),
        ([token(usage=USAGE | {"completion_tokens": 3.0})], Outcome.MALFORMED, "without token counts"),
        ([token(usage=USAGE | {"completion_tokens": -1})], Outcome.MALFORMED, "without token counts"),
        ([{"choices": [], "usage": USAGE}], Outcome.MALFORMED, "no event with choices"),
        (
            [token("", "stop", USAGE | {"completion_tokens": 2})],
            Outcome.WRONG_LENGTH,
            "asked for 5 + 3 tokens, usage says 5 + 2 (finish_reason stop)",
        ),
        ([token("", "length", USAGE | {"completion_tokens": 4})], Outcome.WRONG_LENGTH, "5 + 4"),
        ([token("", "length", USAGE | {"prompt_tokens": 6})], Outcome.WRONG_LENGTH, "6 + 3"),
        ([token(usage=USAGE | {"completion_tokens": 2})], Outcome.TRUNCATED, "at 2 of 3 tokens"),
    ],
)  # fmt: skip - a table
def test_bad_streams(contents: list[object], outcome: Outcome, detail: str) -> None:
    """Each is what it is, and says so."""
    found, said = outcome_for(contents)
    assert found is outcome
    assert detail in said
    assert "\n" not in said


def test_an_event_named_error_is_one() -> None:
    """Some servers name the event rather than say it in the data."""
    reply = read(chunked([b'event: error\ndata: {"code": 7}\n\n']))
    assert outcome_of(reply, Outcome.OK, "", 5, 3) == (
        Outcome.STREAM_ERROR,
        'error after 0 events with choices: {"code": 7}',
    )


def test_a_stream_without_done_is_truncated() -> None:
    """The protocol's own end is missing, whatever usage says."""
    assert outcome_for(GOOD, done=False)[0] is Outcome.TRUNCATED
    assert outcome_for([], done=False)[0] is Outcome.TRUNCATED


@pytest.mark.parametrize("ending", [Outcome.TRUNCATED, Outcome.CONNECTION_LOST, Outcome.TIMED_OUT, Outcome.MALFORMED])
def test_a_broken_stream_is_never_ok(ending: Outcome) -> None:
    """How the connection ended decides, even when all that was needed had come."""
    assert outcome_for(GOOD, ending=ending) == (ending, "a note after 3 events with choices")


def test_what_the_server_said_goes_before_how_it_ended() -> None:
    """An error event, then a reset: the error is the reason."""
    assert outcome_for([token(), {"error": "x"}], ending=Outcome.CONNECTION_LOST)[0] is Outcome.STREAM_ERROR


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"object":"error","message":"too long","code":400}', "HTTP 400: too long"),
        (b'{"error":{"message":"too long"}}', "HTTP 400: too long"),
        (b'{"detail":"too long"}', "HTTP 400: too long"),
        (b"<html>too long</html>", "HTTP 400: <html>too long</html>"),
        (b"[1]", "HTTP 400: [1]"),
        (b"x" * 500, "HTTP 400: " + "x" * 160 + "…"),
    ],
)
def test_another_status_than_200(body: bytes, message: str) -> None:
    """The server's own message is passed on, in whatever form it has."""
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert outcome_of(read(head + body), Outcome.OK, "", 5, 3) == (Outcome.HTTP_STATUS, message)


def test_json_instead_of_a_stream_is_malformed() -> None:
    """A server that does not stream is told from one that does, and quoted."""
    reply = read(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n" + b'{"choices": []}'
    )
    assert outcome_of(reply, Outcome.OK, "", 5, 3) == (
        Outcome.MALFORMED,
        'not an event stream (application/json): {"choices": []}',
    )


def test_what_is_not_http_is_quoted() -> None:
    """Whatever answered there, its first bytes show it."""
    outcome, detail = outcome_of(read(b"SSH-2.0-OpenSSH_9.6\r\n"), Outcome.MALFORMED, "", 5, 3)
    assert outcome is Outcome.MALFORMED
    assert "SSH-2.0-OpenSSH_9.6" in detail
