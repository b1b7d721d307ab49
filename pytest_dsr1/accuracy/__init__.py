"""The model's accuracy, measured by lm-eval behind one function: `evaluate`."""

from __future__ import annotations

import importlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pytest_dsr1.accuracy.documents import AccuracyError, AccuracyTask
from pytest_dsr1.accuracy.tokenizer import Tokenizer
from pytest_dsr1.core.gate import AccuracyFigures, MeasuredTask
from pytest_dsr1.core.server import Served

__all__ = ["AccuracyError", "evaluate", "warm_up_imports"]

#: Deadline of one request, in seconds: lm-eval's own.
TIMEOUT_S = 300.0


def warm_up_imports() -> None:
    """Import lm-eval now, so that its seconds of CPU do not fall into a measurement."""
    with warnings.catch_warnings():
        # Deprecations among lm-eval's dependencies are not the user's errors, also under -W error.
        warnings.simplefilter("ignore")
        importlib.import_module("lm_eval.evaluator")
        importlib.import_module("pytest_dsr1.accuracy.lm")


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """Keep a library's log messages from the terminal; its errors are raised anyway."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def evaluate(
    task: AccuracyTask,
    served: Served,
    tokenizer: Tokenizer,
    concurrency: int,
    *,
    timeout_s: float = TIMEOUT_S,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[AccuracyFigures, MeasuredTask]:
    """Measure the accuracy of a served model with `concurrency` requests in flight.

    :param timeout_s: Deadline of one request.
    :param progress: Called after each request with the number of requests done, and of all.
    :raises AccuracyError: if the connection fails, a request is refused or times out, or a reply is not valid.
    """
    warm_up_imports()
    import lm_eval.evaluator

    from pytest_dsr1.accuracy.lm import CompletionsModel, CorpusTask

    start = time.monotonic()
    # Not simple_evaluate: it also reseeds the global random generators and runs git and torch's environment report.
    try:
        with _quiet("lm_eval"):
            model = CompletionsModel(
                served,
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
            f"{served.url}: the perplexity of {task.name} exceeds the range of floating point: the model is broken"
        ) from None
    scores = results["results"][task.name]
    figures = AccuracyFigures(
        bits_per_byte=scores["bits_per_byte,none"],
        byte_perplexity=scores["byte_perplexity,none"],
        word_perplexity=scores["word_perplexity,none"],
    )
    if figures.bits_per_byte <= 0:
        raise AccuracyError(
            f"{served.url} returned 0 for every log-probability, which no model can reach: "
            "the server does not compute the log-probabilities of the prompt"
        )
    return figures, MeasuredTask(
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
