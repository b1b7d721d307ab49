"""The model's accuracy, measured by lm-eval behind one function: `evaluate`."""

from __future__ import annotations

import asyncio
import importlib
import time
import warnings
from collections.abc import Callable

from pytest_dsr1.accuracy.documents import AccuracyError, AccuracyTask
from pytest_dsr1.accuracy.tokenizer import Tokenizer
from pytest_dsr1.core.gate import AccuracyFigures, MeasuredTask
from pytest_dsr1.core.server import Served

__all__ = ["AccuracyError", "evaluate", "warm_up_imports"]

#: Deadline of one request, in seconds: lm-eval's own.
TIMEOUT_S = 300.0


def warm_up_imports() -> None:
    """Import lm-eval now, so that its CPU time does not fall into a measurement."""
    with warnings.catch_warnings():
        # Deprecations among lm-eval's dependencies are not the user's errors, also under -W error.
        warnings.simplefilter("ignore")
        importlib.import_module("pytest_dsr1.accuracy.lm")


def evaluate(
    task: AccuracyTask,
    served: Served,
    tokenizer: Tokenizer,
    concurrency: int,
    *,
    timeout_s: float = TIMEOUT_S,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[AccuracyFigures, MeasuredTask]:
    """Measure the accuracy of a served model with `concurrency` requests in flight.

    Windows and metrics are lm-eval's.

    :param timeout_s: Deadline of one request.
    :param progress: Called after each request with the number of requests done, and of all.
    :raises AccuracyError: if the connection fails, a request is refused or times out, or a reply is not valid.
    """
    warm_up_imports()
    from pytest_dsr1.accuracy.lm import CompletionsClient, figures_of, windows_of

    start = time.monotonic()
    # Longest first, so that no long request runs alone at the end.
    windows = sorted(windows_of(task, tokenizer), key=lambda window: -len(window.prompt))
    client = CompletionsClient(served, concurrency, timeout_s, progress)
    totals = [0.0] * len(task.documents)
    for window, value in zip(windows, asyncio.run(client.log_likelihoods(windows)), strict=True):
        totals[window.document] += value
    try:
        figures = figures_of(task, totals)
    except OverflowError:
        raise AccuracyError(
            f"{served.url}: the perplexity of {task.name} exceeds the range of floating point: the model is broken"
        ) from None
    if figures.bits_per_byte <= 0:
        raise AccuracyError(
            f"{served.url} returned 0 for every log-probability, which no model can reach: "
            "the server does not compute the log-probabilities of the prompt"
        )
    return figures, MeasuredTask(
        task=task.name,
        documents=len(task.documents),
        tokens=sum(len(window.scored) for window in windows),
        words=task.words,
        bytes=task.bytes,
        requests=len(windows),
        concurrency=concurrency,
        seconds=time.monotonic() - start,
        tokenizer=tokenizer.source,
        prefix_token_id=tokenizer.prefix_token_id,
    )
