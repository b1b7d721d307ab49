"""lm-eval's task and model for a corpus of rolling log-likelihoods. Heavy to import: see `evaluate.warm_up_imports`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from lm_eval.api.instance import Instance
from lm_eval.api.task import PerplexityTask, TaskConfig
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from pytest_dsr1.accuracy import AccuracyError
from pytest_dsr1.accuracy.documents import AccuracyTask, Document
from pytest_dsr1.accuracy.reply import log_likelihood
from pytest_dsr1.core.server import is_loopback
from pytest_dsr1.vocabulary import Endpoint, Tokenizer

#: lm-eval's seed, sent with each request; nothing is sampled.
SEED = 1234


class CorpusTask(PerplexityTask):  # type: ignore[misc] # lm-eval is untyped
    """An `AccuracyTask` as lm-eval sees one: its documents, its words; metrics and aggregation are lm-eval's."""

    def __init__(self, task: AccuracyTask) -> None:
        self._documents = task.documents
        super().__init__()
        # Not through super(): it takes a mapping for the task's name.
        self._config = TaskConfig(task=task.name, output_type=self.OUTPUT_TYPE, num_fewshot=0)

    def download(self, *_: object, **__: object) -> None:
        """Nothing: the documents are here."""

    def has_validation_docs(self) -> bool:
        return False

    def has_test_docs(self) -> bool:
        return True

    def test_docs(self) -> tuple[Document, ...]:
        return self._documents

    def doc_to_target(self, doc: Document) -> Document:
        return doc

    def construct_requests(self, doc: Document, ctx: str | None, **kwargs: Any) -> Instance:
        return Instance(request_type=self.OUTPUT_TYPE, doc=doc, arguments=(doc.text,), idx=0, **kwargs)

    def build_all_requests(self, **_: object) -> None:
        # Instead of lm-eval's, which draws a progress bar over this and passes arguments that a PerplexityTask refuses.
        self._instances = [
            self.construct_requests(document, "", metadata=(self.config.task, number, 1))
            for number, document in enumerate(self._documents)
        ]

    @classmethod
    def count_words(cls, doc: Document) -> int:
        return doc.words

    @classmethod
    def count_bytes(cls, doc: Document) -> int:
        return doc.bytes


@dataclass(frozen=True, slots=True)
class Window:
    """One request: `context` is given, `scored` is predicted."""

    document: int
    context: list[int]
    scored: list[int]

    @property
    def prompt(self) -> list[int]:
        return self.context + self.scored


def rolling_windows(text: str, tokenizer: Tokenizer, max_length: int) -> Iterator[tuple[list[int], list[int]]]:
    """(context, scored tokens) of each request that a text makes, by lm-eval's rolling windows.

    :param max_length: Tokens of a request and of what it generates, as an `AccuracyTask` has it.
    """
    windows = get_rolling_token_windows(
        token_list=tokenizer.encode(text),
        prefix_token=tokenizer.prefix_token_id,
        # lm-eval's own arithmetic: one less for the generated token, one less for the context.
        max_seq_len=max_length - 2,
        context_len=1,
    )
    return map(make_disjoint_window, windows)


class CompletionsModel(LocalCompletionsAPI):  # type: ignore[misc] # lm-eval is untyped
    """lm-eval's client of /v1/completions, with the windows of all documents in flight together.

    Windows and payload are lm-eval's. What goes over the wire is not: lm-eval's own client works document by document
    (concurrency 1 where a document is one window), takes any reply, and repeats every failure, a 400 too.

    :param progress: Called with (requests done, requests in all) after each.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: Tokenizer,
        *,
        concurrency: int,
        max_length: int,
        timeout_s: float,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(
            model=endpoint.model,
            base_url=f"{endpoint.url}/v1/completions",
            # "None" keeps lm-eval from loading one by the model's name.
            tokenizer_backend="None",
            num_concurrent=concurrency,
            max_length=max_length,
            seed=SEED,
        )
        self._endpoint = endpoint
        self._tokens = tokenizer
        # lm-eval's own `max_length` is one less.
        self._task_length = max_length
        self._timeout_s = timeout_s
        self._progress = progress
        self.windows: list[Window] = []

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each document, by lm-eval's rolling windows."""
        self.windows = [
            Window(number, context, scored)
            for number, request in enumerate(requests)
            for context, scored in rolling_windows(request.args[0], self._tokens, self._task_length)
        ]
        # Longest first, so that no long request is left to run alone at the end.
        self.windows.sort(key=lambda window: -len(window.prompt))
        totals = [0.0] * len(requests)
        for window, value in zip(self.windows, asyncio.run(self._measured()), strict=True):
            totals[window.document] += value
        return totals

    async def _measured(self) -> list[float]:
        """Send every window, `num_concurrent` at a time; the log-likelihoods in the windows' order."""
        values = [0.0] * len(self.windows)
        waiting = iter(enumerate(self.windows))
        done = 0

        async def slot(session: aiohttp.ClientSession) -> None:
            nonlocal done
            for number, window in waiting:
                values[number] = await self._log_likelihood(session, window)
                done += 1
                if self._progress is not None:
                    self._progress(done, len(self.windows))

        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._concurrent),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            trust_env=not is_loopback(self._endpoint.url),
        ) as session:
            try:
                async with asyncio.TaskGroup() as slots:
                    for _ in range(min(self._concurrent, len(self.windows))):
                        slots.create_task(slot(session))
            except BaseExceptionGroup as failures:
                # The other slots were cancelled; whichever failed first says enough.
                raise failures.exceptions[0] from None
        return values

    async def _log_likelihood(self, session: aiohttp.ClientSession, window: Window) -> float:
        payload = self._create_payload([window.prompt], generate=False, seed=self._seed)
        body = await self._post(session, orjson.dumps(payload))
        try:
            return log_likelihood(body, len(window.prompt), len(window.context))
        except AccuracyError as error:
            raise AccuracyError(f"accuracy cannot be measured at {self.base_url}: {error}") from None

    async def _post(self, session: aiohttp.ClientSession, payload: bytes) -> bytes:
        try:
            try:
                return await self._attempt(session, payload)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if isinstance(error, aiohttp.ClientConnectorError):
                    raise
                # A server may close a kept connection just when it is used again. Nothing is timed here: once more.
                return await self._attempt(session, payload)
        except TimeoutError:
            raise AccuracyError(
                f"{self.base_url} did not answer an accuracy request within {self._timeout_s:g} s: "
                "see the server's log; a first request that compiles kernels may need a longer deadline"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise AccuracyError(
                f"the connection to {self.base_url} was lost while measuring accuracy "
                f"({type(error).__name__}: {error}): see whether the server is alive, and its log"
            ) from None

    async def _attempt(self, session: aiohttp.ClientSession, payload: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        async with session.post(self.base_url, data=payload, headers=headers) as response:
            body = await response.read()
            if response.status != 200:
                raise AccuracyError(
                    f"{self.base_url} answered an accuracy request (token ids, echo, logprobs) with HTTP "
                    f"{response.status}: {body[:300].decode(errors='replace')}"
                )
            return body
