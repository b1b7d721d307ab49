"""Log-likelihoods of lm-eval's windows, asked for concurrently.

Windows and metrics are lm-eval's, and the fields of a request. Its client is not used: it works document by document,
so its concurrency is 1 if each document is one window, it accepts any reply, and it repeats every failed request, even
after status 400. Importing this module takes half a second of CPU time: see `warm_up_imports`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import aiohttp
import orjson
from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from pytest_dsr1.accuracy.documents import AccuracyError, AccuracyTask
from pytest_dsr1.accuracy.reply import log_likelihood
from pytest_dsr1.accuracy.tokenizer import Tokenizer
from pytest_dsr1.core.gate import AccuracyFigures
from pytest_dsr1.core.server import Served, is_loopback

#: lm-eval's default seed. It is sent with each request, but nothing is sampled.
SEED = 1234


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens of one request: `context` is given, `scored` is scored."""

    document: int
    context: list[int]
    scored: list[int]

    @property
    def prompt(self) -> list[int]:
        return self.context + self.scored


def windows_of(task: AccuracyTask, tokenizer: Tokenizer) -> Iterator[Window]:
    """lm-eval's rolling windows of a task's documents, in order."""
    for number, document in enumerate(task.documents):
        windows = get_rolling_token_windows(
            token_list=tokenizer.encode(document.text),
            prefix_token=tokenizer.prefix_token_id,
            # As lm-eval computes it: one less for the generated token, one less for the context.
            max_seq_len=task.max_length - 2,
            context_len=1,
        )
        for context, scored in map(make_disjoint_window, windows):
            yield Window(number, context, scored)


def figures_of(task: AccuracyTask, log_likelihoods: Sequence[float]) -> AccuracyFigures:
    """lm-eval's metrics of the documents' log-likelihoods.

    :raises OverflowError: A perplexity exceeds the range of floating point.
    """
    by_words = [(value, document.words) for value, document in zip(log_likelihoods, task.documents, strict=True)]
    by_bytes = [(value, document.bytes) for value, document in zip(log_likelihoods, task.documents, strict=True)]
    return AccuracyFigures(
        bits_per_byte=bits_per_byte(by_bytes),
        byte_perplexity=weighted_perplexity(by_bytes),
        word_perplexity=weighted_perplexity(by_words),
    )


class CompletionsClient:
    """Asks a server for the log-likelihoods of windows.

    :param concurrency: Requests in flight.
    :param timeout_s: Deadline of one request.
    :param progress: Called after each request with the number of requests done, and of all.
    """

    def __init__(
        self, served: Served, concurrency: int, timeout_s: float, progress: Callable[[int, int], None]
    ) -> None:
        self._served, self._concurrency, self._timeout_s = served, concurrency, timeout_s
        self._progress = progress
        self._url = f"{served.url}/v1/completions"

    async def log_likelihoods(self, windows: Sequence[Window]) -> list[float]:
        """Send the windows in order; return the log-likelihood of each.

        :raises AccuracyError: The connection fails, a request is refused or times out, or a reply is not valid.
        """
        values = [0.0] * len(windows)
        waiting = iter(enumerate(windows))
        done = 0

        async def slot(session: aiohttp.ClientSession) -> None:
            nonlocal done
            for number, window in waiting:
                values[number] = await self._log_likelihood(session, window)
                done += 1
                self._progress(done, len(windows))

        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._concurrency),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            trust_env=not is_loopback(self._served.url),
        ) as session:
            try:
                async with asyncio.TaskGroup() as slots:
                    for _ in range(min(self._concurrency, len(windows))):
                        slots.create_task(slot(session))
            except BaseExceptionGroup as failures:
                # The group cancels the other slots; the first failure is the one to report.
                raise failures.exceptions[0] from None
        return values

    async def _log_likelihood(self, session: aiohttp.ClientSession, window: Window) -> float:
        payload = {
            "model": self._served.model,
            "prompt": [window.prompt],
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": 1,
            "seed": SEED,
            "echo": True,
        }
        status, body = await self._post(session, orjson.dumps(payload))
        if status != 200:
            raise AccuracyError(
                f"{self._url} answered an accuracy request (token ids, echo, logprobs) with HTTP "
                f"{status}: {body[:300].decode(errors='replace')}"
            )
        try:
            return log_likelihood(body, len(window.prompt), len(window.context))
        except AccuracyError as error:
            raise AccuracyError(f"accuracy cannot be measured at {self._url}: {error}") from None

    async def _post(self, session: aiohttp.ClientSession, payload: bytes) -> tuple[int, bytes]:
        try:
            try:
                return await self._attempt(session, payload)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if isinstance(error, aiohttp.ClientConnectorError):
                    raise
                # A server may close a kept connection at any time. Nothing is timed here: send it again, once.
                return await self._attempt(session, payload)
        except TimeoutError:
            raise AccuracyError(
                f"{self._url} did not answer an accuracy request within {self._timeout_s:g} s: "
                "see the server's log; the first request may take long if the server compiles kernels for it"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise AccuracyError(
                f"the connection to {self._url} was lost while measuring accuracy "
                f"({type(error).__name__}: {error}): check whether the server is alive, and see its log"
            ) from None

    async def _attempt(self, session: aiohttp.ClientSession, payload: bytes) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        async with session.post(self._url, data=payload, headers=headers) as response:
            return response.status, await response.read()
