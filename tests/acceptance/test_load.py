"""The load generator against a scripted server: outcomes, times, retries, signals."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pytest_dsr1.core.config import LoadLimits, Point, Scenario, SweepConfig
from pytest_dsr1.core.samples import LoadRun, Outcome
from pytest_dsr1.load.closed_loop import run_point
from pytest_dsr1.load.prompts import PointPrompts, plan_prompts
from pytest_dsr1.load.slots import LoadProgress
from tests.servers.timed import TimedServer, timed_server
from tests.servers.tls import make_certificate, tls_front

ISL, OSL, CONC, NUM_PROMPTS = 20, 6, 2, 8
#: Numbers of requests, in order of arrival: the warm-ups come first.
FIRST_MEASURED = 2 * CONC


def prompts_of(
    *, conc: int = CONC, num_prompts: int = NUM_PROMPTS, osl: int = OSL, ratio: float = 1.0
) -> tuple[Point, PointPrompts]:
    """A point and its prompts."""
    config = SweepConfig(
        scenarios=(Scenario(ISL, osl),), concurrencies=(conc,), num_prompts=num_prompts, random_range_ratio=ratio
    )
    return config.points[0], plan_prompts(config, 128_000).at(config.points[0])


def load(
    url: str,
    *,
    limits: LoadLimits | None = None,
    on_progress: Callable[[LoadProgress], None] | None = None,
    **asked: Any,
) -> LoadRun:
    """A run against `url`."""
    point, prompts = prompts_of(**asked)
    return run_point(url, "scripted", point, prompts, limits or LoadLimits(idle_timeout_s=20), on_progress=on_progress)


def failures(run: LoadRun) -> list[tuple[Outcome, str]]:
    """Outcome and detail of what was not ok."""
    return [(sample.outcome, sample.detail) for sample in run.samples if not sample.ok]


def test_every_slot_is_busy_and_every_request_is_a_sample() -> None:
    """CONC requests in flight, never more; samples in order; one connection per slot.

    The server answers a request only when four are in flight, so a slot that stays idle would end the run in a timeout.
    """
    with timed_server(gate=4, ttft_s=0.01, interval_s=0.005) as server:
        run = load(server.url, conc=4, num_prompts=16, ratio=0.5)
        truth = server.truth()
    assert (run.concurrency, run.num_prompts, run.aborted, run.reconnects) == (4, 16, "", 0)
    assert [sample.index for sample in run.samples] == list(range(16))
    assert len(run.warmups) == 8
    assert all(sample.ok for sample in (*run.warmups, *run.samples))
    assert truth["in_flight"] == 4
    assert truth["connections"] == 4 + 1  # the last one asks for the truth
    assert len(truth["requests"]) == 24
    starts = [sample for sample in run.samples if sample.idle_ns == 0]
    assert sorted(sample.slot for sample in starts) == [0, 1, 2, 3]
    assert [sample.index for sample in starts] == [0, 1, 2, 3]
    sent = [sample.sent_ns for sample in run.samples]
    assert sent == sorted(sent)
    assert run.loop_lag.ticks > 0
    assert run.wall_s > 0
    assert run.cpu_s > 0


def test_times_are_those_of_reads() -> None:
    """Requests are sent before they are received; events are read after being sent."""
    with timed_server(ttft_s=0.02, interval_s=0.01) as server:
        point, prompts = prompts_of(ratio=0.5)
        run = run_point(server.url, "scripted", point, prompts, LoadLimits())
        truth = {(said["first"], said["second"]): said for said in server.truth()["requests"]}
    for sample in run.samples:
        prompt = prompts.measured[sample.index]
        said = truth[prompt.first, prompt.second]
        assert (said["prompt_tokens"], said["max_tokens"]) == (prompt.input_tokens, prompt.output_tokens)
        assert (sample.prompt_tokens, sample.generated_tokens) == (prompt.input_tokens, prompt.output_tokens)
        assert (sample.requested_input_tokens, sample.requested_output_tokens) == (
            sample.prompt_tokens,
            sample.generated_tokens,
        )
        assert sample.sent_ns <= said["received_ns"]
        assert len(sample.event_ns) == len(said["event_ns"]) == prompt.output_tokens
        assert all(read_ns >= sent_ns for read_ns, sent_ns in zip(sample.event_ns, said["event_ns"], strict=True))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"piece_bytes": 7, "piece_gap_s": 0.0}, id="a JSON in many reads"),
        pytest.param({"piece_bytes": 97, "piece_gap_s": 0.001}, id="cut anywhere"),
        pytest.param({"events_per_send": 4}, id="several events in one read"),
        pytest.param({"tokens_per_event": 4}, id="several tokens in one event"),
        pytest.param({"text": ""}, id="events without text"),
        pytest.param({"newline": "\r\n"}, id="CRLF"),
        pytest.param({"newline": "\r", "piece_bytes": 11, "piece_gap_s": 0.0}, id="CR"),
        pytest.param({"comments": True}, id="comments"),
        pytest.param({"text": "é🙂", "piece_bytes": 1, "piece_gap_s": 0.0}, id="a character of several bytes split"),
        pytest.param({"usage": "last"}, id="usage with choices"),
        pytest.param({"usage": "every"}, id="usage in every event"),
        pytest.param({"finish_reason": None}, id="no finish reason"),
        pytest.param({"framing": "eof"}, id="a body up to the end of the connection"),
    ],
)  # fmt: skip - a table
def test_good_answers(answer: dict[str, Any]) -> None:
    """However a server frames, cuts and accounts, a complete answer is ok."""
    with timed_server(**answer) as server:
        run = load(server.url, num_prompts=4)
    assert failures(run) == []
    events = -(-OSL // answer.get("tokens_per_event", 1))
    assert {len(sample.event_ns) for sample in run.samples} == {events}


def test_cached_tokens_are_kept() -> None:
    """What the server says about its prefix cache is part of a sample."""
    with timed_server(cached_tokens=3) as server:
        assert {sample.cached_tokens for sample in load(server.url).samples} == {3}


@pytest.mark.parametrize(
    ("answer", "outcome", "detail"),
    [
        pytest.param({"status": 400, "message": "too long"}, Outcome.HTTP_STATUS, "HTTP 400: too long", id="4xx"),
        pytest.param({"status": 503, "message": "busy"}, Outcome.HTTP_STATUS, "HTTP 503: busy", id="5xx"),
        pytest.param(
            {"error_at": 3, "message": "oom"},
            Outcome.STREAM_ERROR,
            "error after 3 events with choices: oom",
            id="error event",
        ),
        pytest.param(
            {"error_at": 0, "message": "oom"},
            Outcome.STREAM_ERROR,
            "error after 0 events with choices: oom",
            id="error event first",
        ),
        pytest.param({"stall_at": 3}, Outcome.TIMED_OUT, "no byte for 0.5 s after 3 events with choices", id="stall"),
        pytest.param(
            {"stall_at": 0},
            Outcome.TIMED_OUT,
            "no byte for 0.5 s after 0 events with choices",
            id="stall after the head",
        ),
        pytest.param({"interval_s": 0.25}, Outcome.TIMED_OUT, "not complete within 1 s", id="too slow"),
        pytest.param({"reset_at": 3}, Outcome.CONNECTION_LOST, "after 3 events with choices", id="reset"),
        pytest.param({"close_at": 3}, Outcome.TRUNCATED, "closed the connection after 3 events", id="closed early"),
        pytest.param(
            {"close_at": 0}, Outcome.TRUNCATED, "closed the connection after 0 events", id="closed after the head"
        ),
        pytest.param(
            {"framing": "eof", "close_at": 3}, Outcome.TRUNCATED, "without [DONE]", id="closed early without a length"
        ),
        pytest.param({"done": False}, Outcome.TRUNCATED, "without [DONE]", id="no [DONE]"),
        pytest.param(
            {"generated": 4}, Outcome.WRONG_LENGTH, "usage says 20 + 4 (finish_reason length)", id="too short"
        ),
        pytest.param({"generated": 7}, Outcome.WRONG_LENGTH, "usage says 20 + 7 (finish_reason length)", id="too long"),
        pytest.param({"prompt_tokens": 21}, Outcome.WRONG_LENGTH, "usage says 21 + 6", id="another prompt"),
        pytest.param(
            {"generated": 4, "finish_reason": None}, Outcome.TRUNCATED, "at 4 of 6 tokens", id="short without a reason"
        ),
        pytest.param({"generated": 0}, Outcome.TRUNCATED, "at 0 of 6 tokens", id="nothing generated"),
        pytest.param({"usage": "none"}, Outcome.MALFORMED, "no usage", id="no usage"),
        pytest.param({"bad_json_at": 2}, Outcome.MALFORMED, "not JSON", id="bad JSON"),
        pytest.param({"raw": "SSH-2.0-OpenSSH_9.6\r\n"}, Outcome.MALFORMED, "not HTTP", id="not HTTP"),
        pytest.param(
            {"raw": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"},
            Outcome.MALFORMED,
            "not HTTP",
            id="bad chunk",
        ),
        pytest.param(
            {"raw": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"},
            Outcome.MALFORMED,
            "not an event stream",
            id="no stream",
        ),
        pytest.param(
            {"raw": "HTTP/1.1 200 OK\r\nContent-"}, Outcome.TRUNCATED, "closed the connection", id="cut in the head"
        ),
    ],
)  # fmt: skip - a table
def test_bad_answers(answer: dict[str, Any], outcome: Outcome, detail: str) -> None:
    """A bad answer is one failed sample with the right outcome; all others are ok."""
    with timed_server(answers={FIRST_MEASURED + 3: answer}) as server:
        run = load(server.url, limits=LoadLimits(idle_timeout_s=0.5, request_timeout_s=1.0))
    assert run.aborted == ""
    assert len(run.samples) == NUM_PROMPTS
    ((found, said),) = failures(run)
    assert found is outcome
    assert detail in said


@pytest.mark.parametrize("after", ["announced", "silent"])
def test_connections_that_the_server_does_not_keep(after: str) -> None:
    """A fresh connection for every request is slower, but right, and counted."""
    with timed_server(after=after) as server:
        run = load(server.url)
    assert failures(run) == []
    assert run.reconnects >= NUM_PROMPTS + FIRST_MEASURED - 2 * CONC


def test_a_kept_connection_found_dead_is_replaced_once() -> None:
    """A request without an answer on a reused connection is sent again, once."""
    with timed_server(answers={FIRST_MEASURED + 3: {"hang_up": True}}) as server:
        point, prompts = prompts_of()
        run = run_point(server.url, "scripted", point, prompts, LoadLimits())
        truth = server.truth()["requests"]
    assert failures(run) == []
    assert run.reconnects == 1
    assert len(truth) == FIRST_MEASURED + NUM_PROMPTS + 1
    tries = [said for said in truth if said["first"] == truth[FIRST_MEASURED + 3]["first"]]
    assert len(tries) == 2
    (sample,) = (s for s in run.samples if prompts.measured[s.index].first == tries[0]["first"])
    assert sample.sent_ns <= tries[0]["received_ns"]


@pytest.mark.parametrize("answer", [{"hang_up": True}, {"reset_at": 0}])
def test_a_request_is_never_sent_three_times(answer: dict[str, Any]) -> None:
    """What fails on a fresh connection has failed."""
    # One slot: the request that follows a hang-up is its second try.
    with timed_server(answers={3: answer, 4: answer}) as server:
        run = load(server.url, conc=1, num_prompts=4)
        assert len(server.truth()["requests"]) == 2 + 4 + 1
    ((outcome, _),) = failures(run)
    assert outcome is Outcome.CONNECTION_LOST
    assert run.samples[1].outcome is Outcome.CONNECTION_LOST


def test_a_fresh_connection_is_not_tried_twice() -> None:
    """The very first request of a connection has no excuse."""
    with timed_server(answers={0: {"hang_up": True}}) as server:
        run = load(server.url, conc=1, num_prompts=2)
        assert len(server.truth()["requests"]) == 2 + 2
    assert [sample.outcome for sample in run.warmups] == [Outcome.CONNECTION_LOST, Outcome.OK]


def test_nobody_listens() -> None:
    """No server: no samples, at once, and the reason."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    run = load(f"http://127.0.0.1:{port}")
    assert run.samples == ()
    assert run.aborted.startswith(f"cannot connect to 127.0.0.1:{port}: ")


def test_a_server_that_dies_ends_the_run() -> None:
    """The run is over with the server, not with the deadline of an hour."""
    with timed_server(ttft_s=0.05, interval_s=0.05, answers={}) as server:

        def on_progress(progress: LoadProgress) -> None:
            if progress.phase == "measured":
                server.kill()

        run = load(server.url, on_progress=on_progress)
    assert "cannot connect" in run.aborted
    assert len(run.samples) < NUM_PROMPTS


def test_a_server_that_stops_answering_ends_the_run() -> None:
    """If all streams stall, the other requests do not wait for a deadline each."""
    answers = {number: {"stall_at": 1} for number in range(FIRST_MEASURED, FIRST_MEASURED + NUM_PROMPTS)}
    with timed_server(answers=answers) as server:
        run = load(server.url, limits=LoadLimits(idle_timeout_s=0.3))
    assert run.aborted == "no byte on any connection for 0.3 s"
    assert [outcome for outcome, _ in failures(run)] == [Outcome.TIMED_OUT] * CONC


def test_a_server_that_refuses_everything_is_not_measured() -> None:
    """When no warm-up succeeds, the reason is that of the first."""
    with timed_server(error_at=0, message="no such model") as server:
        run = load(server.url)
    assert run.samples == ()
    assert Counter(sample.outcome for sample in run.warmups) == {Outcome.STREAM_ERROR: 2 * CONC}
    assert run.aborted.startswith("none of 4 warm-up requests succeeded; stream_error: ")
    assert "no such model" in run.aborted


def test_too_many_failures_end_the_run() -> None:
    """More than CONC, and more than 5 % of the requests, failed."""
    answers = {number: {"status": 500} for number in range(FIRST_MEASURED, 100)}
    with timed_server(answers=answers) as server:
        run = load(server.url, num_prompts=60)
    assert run.aborted == "4 requests failed, 3 are allowed; last: HTTP 500"
    assert len(run.samples) == 4


def test_proxies_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with timed_server() as server:
        assert failures(load(server.url)) == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server behind TLS is measured if its certificate is trusted, and only then."""
    certificate, key = make_certificate(tmp_path)
    with timed_server() as server, tls_front(server.port, certificate, key) as port:
        untrusted = load(f"https://localhost:{port}")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusted = load(f"https://localhost:{port}")
    assert "certificate verify failed" in untrusted.aborted
    assert trusted.aborted == ""
    assert failures(trusted) == []


def test_names_are_resolved() -> None:
    """A host is a name as well as an address."""
    with timed_server() as server:
        assert failures(load(f"http://localhost:{server.port}/")) == []


def test_progress_is_told_of_both_phases() -> None:
    """At most 5 times a second while it runs, and at the end of each phase."""
    told: list[LoadProgress] = []
    with timed_server(ttft_s=0.25) as server:
        load(server.url, num_prompts=4, on_progress=told.append)
    ends = [progress for progress in told if progress.done == progress.total]
    assert [(end.phase, end.total, end.tokens) for end in ends[-2:]] == [
        ("warm-up", 2 * CONC, 2 * CONC * OSL),
        ("measured", 4, 4 * OSL),
    ]
    within = [progress.elapsed_s for progress in told if progress.phase == "measured"][:-1]
    assert within
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(within))


class Stop(Exception):  # noqa: N818 - like pytest's Exit, it is no error
    """What a handler may raise, as pytest's own does: no subclass of SystemExit."""


def raise_stop(*_: object) -> NoReturn:
    raise Stop


@contextmanager
def handling(number: signal.Signals, handler: Any) -> Iterator[None]:
    """A signal handler for a while."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def endless_server() -> Iterator[TimedServer]:
    """One that would take an hour."""
    with timed_server(interval_s=600) as server:
        yield server


@pytest.mark.parametrize(
    ("number", "handler", "expected"),
    [
        (signal.SIGINT, signal.default_int_handler, KeyboardInterrupt),
        (signal.SIGTERM, raise_stop, Stop),
        (signal.SIGALRM, raise_stop, Stop),
    ],
)
def test_a_signal_ends_the_run(number: signal.Signals, handler: Any, expected: type[BaseException]) -> None:
    """What the handler raises ends the run; afterwards the handler is restored."""
    with endless_server() as server, handling(number, handler):
        with pytest.raises(expected):
            load(server.url, on_progress=lambda _: os.kill(os.getpid(), number))
        assert signal.getsignal(number) is handler
        # Every connection is closed: the server has nothing left in flight.
        assert server.truth()["open"] == 1


def test_a_signal_whose_handler_returns_does_not_end_it() -> None:
    """Handlers are called as ever, and may go on."""
    seen: list[int] = []
    with timed_server(ttft_s=0.25) as server, handling(signal.SIGTERM, lambda number, _: seen.append(number)):
        run = load(server.url, num_prompts=2, on_progress=lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert failures(run) == []
    assert set(seen) == {signal.SIGTERM}


def test_what_on_progress_raises_ends_the_run() -> None:
    """An error of the caller's is his to see."""
    with endless_server() as server, pytest.raises(Stop):
        load(server.url, on_progress=raise_stop)


def test_the_limit_of_open_files_is_raised() -> None:
    """As far as it may be; beyond that, the error says what to do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        with timed_server() as server:
            assert failures(load(server.url)) == []
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= CONC + 200
            with pytest.raises(ValueError, match=r"open files, but the limit is \d+; .*lower --conc"):
                load(server.url, conc=hard, num_prompts=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
