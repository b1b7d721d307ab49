"""Accuracy against a server whose log-probabilities are known."""

from __future__ import annotations

import math
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from pytest_dsr1.accuracy import AccuracyError, evaluate, warm_up_imports
from pytest_dsr1.accuracy.documents import AccuracyTask, Document
from pytest_dsr1.accuracy.tokenizer import Tokenizer
from pytest_dsr1.core.gate import AccuracyFigures, MeasuredTask
from pytest_dsr1.core.server import Served
from tests.servers.echo import BOS, EchoServer, encode, logprob

TOKENIZER = Tokenizer(encode, BOS, "bytes")
#: Twelve documents; the second is longer than a window, some characters are two bytes.
TASK = AccuracyTask(
    "known",
    tuple(
        Document(text, words=len(text.split())) for text in ["Once upon a time.", "käse " * 40, *map(str, range(10))]
    ),
    max_length=64,
)


@pytest.fixture(scope="module", autouse=True)
def _imports() -> None:
    warm_up_imports()


def served(url: str, model: str = "m") -> Served:
    return Served(url=url, model=model, engine="external")


def measured(
    server: EchoServer, concurrency: int = 4, task: AccuracyTask = TASK, **options: Any
) -> tuple[AccuracyFigures, MeasuredTask]:
    return evaluate(task, served(server.url, "known-model"), TOKENIZER, concurrency, **options)


def test_figures_are_the_closed_form_of_known_logprobs() -> None:
    """Every byte is scored once; the three figures follow from one sum."""
    with EchoServer().running() as server:
        figures, _ = measured(server)
    total = math.fsum(logprob(token) for document in TASK.documents for token in encode(document.text))
    assert figures.bits_per_byte == pytest.approx(-total / TASK.bytes / math.log(2), rel=1e-12)
    assert figures.byte_perplexity == pytest.approx(math.exp(-total / TASK.bytes), rel=1e-12)
    assert figures.word_perplexity == pytest.approx(math.exp(-total / TASK.words), rel=1e-12)
    assert figures.bits_per_byte == pytest.approx(math.log2(figures.byte_perplexity), rel=1e-12)


def test_lm_evals_own_client_finds_the_same() -> None:
    """Its requests, one document after the other, and its figures: equal to the last digits."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class Client(LocalCompletionsAPI):  # type: ignore[misc] # lm-eval is untyped
        """With the tokenizer of the test; everything else is lm-eval's."""

        prefix_token_id = BOS

        def tok_encode(self, string: str, **_: object) -> list[int]:
            return encode(string)

    with EchoServer().running() as server:
        figures, _ = measured(server, concurrency=1)
        ours = sorted(server.payloads, key=str)
        server.payloads.clear()
        url = f"{server.url}/v1/completions"
        client = Client(model="known-model", base_url=url, tokenizer_backend="None", max_length=TASK.max_length)
        client.tokenizer, client.tokenized_requests = encode, True  # ids are sent, and made by the method above
        asked = [Instance("loglikelihood_rolling", {}, (document.text,), 0) for document in TASK.documents]
        total = math.fsum(client.loglikelihood_rolling(asked, disable_tqdm=True))
        theirs = sorted(server.payloads, key=str)
    assert figures.byte_perplexity == pytest.approx(math.exp(-total / TASK.bytes), rel=1e-12)
    assert ours == theirs


def test_a_measurement_says_what_it_is_one_of() -> None:
    """Task, sizes, tokenizer and concurrency go with the figures."""
    with EchoServer().running() as server:
        _, result = measured(server, concurrency=3)
        requests = len(server.payloads)
    assert (result.task, result.documents, result.words, result.bytes) == ("known", 12, TASK.words, TASK.bytes)
    assert result.tokens == TASK.bytes
    assert (result.requests, result.concurrency) == (requests, 3)
    assert (result.tokenizer, result.prefix_token_id) == ("bytes", BOS)


def test_requests_are_lm_evals_with_ids_and_our_prefix() -> None:
    """Token ids, echo, one generated token; only the first window has a prefix."""
    with EchoServer().running() as server:
        measured(server)
    prompts = [payload.pop("prompt")[0] for payload in server.payloads]
    expected = {"model": "known-model", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    assert all(payload == expected for payload in server.payloads)
    assert sum(prompt[0] == BOS for prompt in prompts) == len(TASK.documents)
    assert all(len(prompt) <= TASK.max_length - 1 for prompt in prompts)
    assert sum(BOS in prompt[1:] for prompt in prompts) == 0


def test_a_prefix_with_id_0_is_sent() -> None:
    """It is not taken for a missing one."""
    with EchoServer().running() as server:
        evaluate(TASK.first(1), served(server.url), Tokenizer(encode, 0, "bytes"), 1)
    assert [payload["prompt"][0][0] for payload in server.payloads] == [0]


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_so_many_requests_are_in_flight_as_asked(concurrency: int) -> None:
    """Across documents: the server answers only when it has `concurrency` requests."""
    with EchoServer(gate=concurrency).running() as server:
        measured(server, concurrency, timeout_s=30)
    assert server.peak == concurrency


def test_figures_are_the_same_at_every_concurrency() -> None:
    """To the last bit: the order of replies does not enter the sum."""
    with EchoServer().running() as server:
        assert len({measured(server, concurrency)[0] for concurrency in (1, 3, 64)}) == 1


def test_progress_is_told_after_each_request() -> None:
    """Done, of how many."""
    told: list[tuple[int, int]] = []
    with EchoServer().running() as server:
        _, result = measured(server, progress=lambda *counts: told.append(counts))
    assert told == [(done, result.requests) for done in range(1, result.requests + 1)]


def replaced(position: int, value: object) -> Callable[[list[Any]], list[Any]]:
    return lambda entries: [*entries[:position], value, *entries[position + 1 :]]


@pytest.mark.parametrize(
    ("alter", "complaint"),
    [
        (lambda entries: entries[-1:], "1 log-probabilities for a prompt of .*ignores echo"),
        (lambda entries: entries[:-1], "log-probabilities for a prompt of"),
        (lambda entries: entries[4:], "--disable-radix-cache"),
        (lambda entries: [None, *entries], "tokens of its own"),
        (replaced(1, None), "log-probability 1 of .* is null"),
        (replaced(1, math.nan), "log-probability 1 of .* is nan"),
        (replaced(1, -math.inf), "log-probability 1 of .* is -inf"),
        (replaced(1, 0.5), r"log-probability 1 of .* is 0\.5, above 0"),
        (lambda entries: [0.0] * len(entries), "0 for every log-probability"),
        (lambda entries: [-1e6] * len(entries), "exceeds the range of floating point"),
    ],
)
def test_a_broken_server_is_an_error_and_never_a_perplexity(
    alter: Callable[[list[Any]], list[Any]], complaint: str
) -> None:
    """The error names the server and what it returned."""
    with EchoServer(alter=alter).running() as server, pytest.raises(AccuracyError, match=complaint) as error:
        measured(server)
    assert server.url in str(error.value)


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_a_refusal_is_not_repeated(status: int) -> None:
    """The error has status and text; each slot asked once at most."""
    server = EchoServer(answer=lambda _: web.Response(status=status, text="prompt too long for me"))
    with server.running(), pytest.raises(AccuracyError, match=f"HTTP {status}: prompt too long for me"):
        measured(server, concurrency=2)
    assert len(server.payloads) <= 2


def test_a_connection_cut_once_is_tried_again() -> None:
    """A server may close a kept connection just when it is used."""
    with EchoServer(hang_ups=1).running() as server:
        assert measured(server)[1].requests == len(server.payloads) - 1


def test_a_server_that_hangs_up_is_an_error() -> None:
    """With its URL."""
    with EchoServer(hang_ups=10_000).running() as server, pytest.raises(AccuracyError, match="was lost") as error:
        measured(server)
    assert server.url in str(error.value)


def test_nobody_listening_is_an_error_with_the_url() -> None:
    """Where was it looked for, and what is to be checked."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = "http://127.0.0.1:{1}".format(*taken.getsockname())
        with pytest.raises(AccuracyError, match=f"{url}/v1/completions was lost .*whether the server is alive"):
            evaluate(TASK, served(url), TOKENIZER, 4)


def test_a_silent_server_is_an_error_after_the_deadline() -> None:
    """The error has the deadline."""
    with EchoServer(gate=10_000).running() as server, pytest.raises(AccuracyError, match=r"within 0\.2 s"):
        measured(server, timeout_s=0.2)


def test_proxies_are_ignored_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment has no business between two processes of one machine."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with EchoServer(tokenize=lambda text, special: {"tokens": [BOS] * special + encode(text)}).running() as server:
        measured(server)


def test_global_random_state_is_left_alone() -> None:
    """lm-eval would reseed it; a stranger's tests may depend on it."""
    import random

    import numpy as np

    random.seed(7)
    np.random.seed(7)
    state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index] # the legacy form
    with EchoServer().running() as server:
        measured(server)
    assert random.getstate() == state
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index] # as above


def test_nothing_is_printed_or_logged(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """No progress bars, no advice."""
    with EchoServer().running() as server:
        measured(server)
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_importing_is_light_until_it_is_warmed_up() -> None:
    """Importing the room does not load lm-eval, which takes a second."""
    script = """
        import sys
        import pytest_dsr1.accuracy
        heavy = {"lm_eval", "transformers", "datasets", "aiohttp", "tokenizers", "huggingface_hub"}
        print(sorted(heavy & set(sys.modules)))
        pytest_dsr1.accuracy.warm_up_imports()
        print(sorted({"lm_eval.utils", "aiohttp"} & set(sys.modules)))
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["[]", "['aiohttp', 'lm_eval.utils']"]
    assert result.stderr == ""


def test_ctrl_c_gets_through() -> None:
    """KeyboardInterrupt comes out, at once, while requests are in flight."""
    script = """
        import signal, sys
        from pytest_dsr1.accuracy import evaluate
        from pytest_dsr1.accuracy.documents import AccuracyTask, Document
        from pytest_dsr1.accuracy.tokenizer import Tokenizer
        from pytest_dsr1.core.server import Served
        # A background job of a shell inherits that SIGINT is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        server = Served(url=sys.argv[1], model="m", engine="external")
        task = AccuracyTask("t", tuple(Document("text", 1) for _ in range(8)))
        try:
            evaluate(task, server, Tokenizer(lambda text: [1, 2], 0, "two"), 4)
        except KeyboardInterrupt:
            print("interrupted")
    """
    # The gate never opens by itself: a fifth request would be needed, and four are in flight.
    with EchoServer(gate=5).running() as server:
        command = [sys.executable, "-c", textwrap.dedent(script), server.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            server.reached(4)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
    assert (output, errors) == ("interrupted\n", "")
