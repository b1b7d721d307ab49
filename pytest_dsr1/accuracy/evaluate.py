"""One function: a task, a server and a concurrency in, the three figures out."""

from __future__ import annotations

import importlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pytest_dsr1.accuracy import AccuracyError
from pytest_dsr1.accuracy.documents import AccuracyTask
from pytest_dsr1.core.gate import AccuracyFigures
from pytest_dsr1.vocabulary import Endpoint, Tokenizer

#: lm-eval's own deadline for one request, in seconds.
TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AccuracyMeasurement:
    """What one evaluation found, and of what.

    :param task: The name by which a baseline is looked up.
    :param tokens: Tokens scored, in the served model's vocabulary; prefix tokens are not.
    :param words: What `word_perplexity` counts; see the task.
    :param bytes: UTF-8 bytes of the documents.
    :param requests: Windows, each a request.
    :param seconds: Wall clock of the whole evaluation.
    :param tokenizer: Whose tokenizer made the ids.
    """

    figures: AccuracyFigures
    task: str
    documents: int
    tokens: int
    words: int
    bytes: int
    requests: int
    concurrency: int
    seconds: float
    tokenizer: str
    prefix_token_id: int


def warm_up_imports() -> None:
    """Import lm-eval now: seconds of CPU that belong before a server's clock, never inside a measured window."""
    with warnings.catch_warnings():
        # What lm-eval's dependencies deprecate among each other is no error of the user's, whatever his -W says.
        warnings.simplefilter("ignore")
        importlib.import_module("lm_eval.evaluator")
        importlib.import_module("pytest_dsr1.accuracy.lm")


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """Keep a library's advice on settings that are deliberate from the terminal; its errors are raised anyway."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def evaluate(
    task: AccuracyTask,
    endpoint: Endpoint,
    tokenizer: Tokenizer,
    concurrency: int,
    *,
    timeout_s: float = TIMEOUT_S,
    progress: Callable[[int, int], None] | None = None,
) -> AccuracyMeasurement:
    """Measure what `endpoint` scores on `task`, with `concurrency` requests in flight.

    :param timeout_s: Deadline of one request.
    :param progress: Called with (requests done, requests in all) after each request.
    :raises AccuracyError: No connection, a refusal, a deadline, or a reply that a perplexity must not be made of.
    """
    warm_up_imports()
    import lm_eval.evaluator

    from pytest_dsr1.accuracy.lm import CompletionsModel, CorpusTask

    start = time.monotonic()
    # Not simple_evaluate: that one also reseeds the global generators and runs git and torch's environment report.
    try:
        with _quiet("lm_eval"):
            model = CompletionsModel(
                endpoint,
                tokenizer,
                concurrency=concurrency,
                max_length=task.max_length,
                timeout_s=timeout_s,
                progress=progress,
            )
            results = lm_eval.evaluator.evaluate(
                lm=model, task_dict={"tasks": {task.name: CorpusTask(task)}}, bootstrap_iters=0, log_samples=False
            )
    except OverflowError:
        raise AccuracyError(
            f"{endpoint.url} gives {task.name} a perplexity beyond floating point: the model is broken"
        ) from None
    scores = results["results"][task.name]
    figures = AccuracyFigures(
        bits_per_byte=scores["bits_per_byte,none"],
        byte_perplexity=scores["byte_perplexity,none"],
        word_perplexity=scores["word_perplexity,none"],
    )
    if figures.bits_per_byte <= 0:
        raise AccuracyError(
            f"{endpoint.url} returned 0 for every log-probability: a perfect score is none; "
            "the server does not compute the prompt's log-probabilities"
        )
    return AccuracyMeasurement(
        figures=figures,
        task=task.name,
        documents=len(task.documents),
        tokens=sum(len(window.scored) for window in model.windows),
        words=task.words,
        bytes=task.bytes,
        requests=len(model.windows),
        concurrency=concurrency,
        seconds=time.monotonic() - start,
        tokenizer=tokenizer.source,
        prefix_token_id=tokenizer.prefix_token_id,
    )
