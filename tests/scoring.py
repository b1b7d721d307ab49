"""A server of known log-likelihoods, and the accuracy baseline that it meets."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pytest_dsr1.accuracy.documents import task_for
from pytest_dsr1.core.gate import AccuracyBaseline, AccuracyFigures, baselines_to_json
from tests.project import Project
from tests.servers.timed import BYTES_PER_TOKEN, TimedServer, timed_server


def scoring_server(**info: Any) -> AbstractContextManager[TimedServer]:
    """A server that gives each token a log-likelihood of -1."""
    return timed_server(ttft_s=0.002, interval_s=0.004, server_info={"bos_token_id": 256, **info})


def with_baseline(project: Project, data: Path | None = None, *, percent: float = 0.0) -> tuple[str, ...]:
    """Options with a baseline for this server.

    :param data: `--accuracy-data`; None: the embedded engine's own corpus.
    :param percent: The baseline's figures are so much higher than the server's.
    """
    task = task_for(reference=data is None, data=data)
    loss = sum(math.ceil(document.bytes / BYTES_PER_TOKEN) for document in task.documents)
    figures = AccuracyFigures(
        bits_per_byte=loss / task.bytes / math.log(2) * (1 + percent / 100),
        byte_perplexity=math.exp(loss / task.bytes) * (1 + percent / 100),
        word_perplexity=math.exp(loss / task.words) * (1 + percent / 100),
    )
    baseline = AccuracyBaseline("scripted", task.name, figures, "-")
    (project.folder / "mine.json").write_text(baselines_to_json([baseline]))
    corpus = () if data is None else (f"--accuracy-data={data}",)
    return (*corpus, "--accuracy-baseline", "mine.json")
