"""lm-eval's task and model classes for rolling log-likelihoods of a corpus.

Importing this module takes seconds: see `warm_up_imports`.
"""

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

from pytest_dsr1.accuracy.documents import AccuracyError, AccuracyTask, Document
from pytest_dsr1.accuracy.reply import log_likelihood
from pytest_dsr1.accuracy.tokenizer import Tokenizer
from pytest_dsr1.core.server import Served, is_loopback

#: lm-eval's default seed. It is sent with each request, but nothing is sampled.
SEED = 1234


class CorpusTask(PerplexityTask):  # type: ignore[misc] # lm-eval is untyped
    """An `AccuracyTask` as a task of lm-eval; metrics and aggregation are lm-eval's."""

    def __init__(self, task: AccuracyTask) -> None:
        self._documents = task.documents
        super().__init__()
        # Not passed to super(): it would take the mapping for the task's name.
        self._config = TaskConfig(task=task.name, output_type=self.OUTPUT_TYPE, num_fewshot=0)

    def download(self, *_: object, **__: object) -> None:
        """Do nothing: the documents are already loaded."""

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
        # lm-eval's own method draws a progress bar and passes arguments that PerplexityTask does not accept.
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
    """The tokens of one request: `context` is given, `scored` is scored."""

    document: int
    context: list[int]
    scored: list[int]

    @property
    def prompt(self) -> list[int]:
        return self.context + self.scored


def rolling_windows(text: str, tokenizer: Tokenizer, max_length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Cut a text into lm-eval's rolling windows: (context, scored tokens) of each.

    :param max_length: Largest number of tokens of a request, the generated one included; see `AccuracyTask`.
    """
    windows = get_rolling_token_windows(
        token_list=tokenizer.encode(text),
        prefix_token=tokenizer.prefix_token_id,
        # As lm-eval computes it: one less for the generated token, one less for the context.
        max_seq_len=max_length - 2,
        context_len=1,
    )
    return map(make_disjoint_window, windows)


class CompletionsModel(LocalCompletionsAPI):  # type: ignore[misc] # lm-eval is untyped
    """lm-eval's client of /v1/completions, concurrent over all documents.

    Windows and payloads are lm-eval's; the HTTP client is not. lm-eval's own client works document by document, so its
    concurrency is 1 if each document is one window. It also accepts any reply, and repeats every failed request, even
    after status 400.

    :param progress: Called after each request with the number of requests done, and of all.
    """

    def __init__(
        self,
        served: Served,
        tokenizer: Tokenizer,
        *,
        concurrency: int,
        max_length: int,
        timeout_s: float,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(
            model=served.model,
            base_url=f"{served.url}/v1/completions",
            # The string "None" keeps lm-eval from loading a tokenizer by the model's name.
            tokenizer_backend="None",
            num_concurrent=concurrency,
            max_length=max_length,
            seed=SEED,
        )
        self._served = served
        self._tokens = tokenizer
        # lm-eval's attribute `max_length` is one less.
        self._task_length = max_length
        self._timeout_s = timeout_s
        self._progress = progress
        self.windows: list[Window] = []

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Measure the log-likelihood of each document, the sum over its windows."""
        self.windows = [
            Window(number, context, scored)
            for number, request in enumerate(requests)
            for context, scored in rolling_windows(request.args[0], self._tokens, self._task_length)
        ]
        # Longest first, so that no long request runs alone at the end.
        self.windows.sort(key=lambda window: -len(window.prompt))
        totals = [0.0] * len(requests)
        for window, value in zip(self.windows, asyncio.run(self._measured()), strict=True):
            totals[window.document] += value
        return totals

    async def _measured(self) -> list[float]:
        """Send all windows; return their log-likelihoods in the order of `windows`."""
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
            trust_env=not is_loopback(self._served.url),
        ) as session:
            try:
                async with asyncio.TaskGroup() as slots:
                    for _ in range(min(self._concurrent, len(self.windows))):
                        slots.create_task(slot(session))
            except BaseExceptionGroup as failures:
                # The group cancels the other slots; the first failure is the one to report.
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
                # A server may close a kept connection at any time. Nothing is timed here: send it again, once.
                return await self._attempt(session, payload)
        except TimeoutError:
            raise AccuracyError(
                f"{self.base_url} did not answer an accuracy request within {self._timeout_s:g} s: "
                "see the server's log; the first request may take long if the server compiles kernels for it"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise AccuracyError(
                f"the connection to {self.base_url} was lost while measuring accuracy "
                f"({type(error).__name__}: {error}): check whether the server is alive, and see its log"
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
