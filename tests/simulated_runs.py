"""Simulated load runs: a closed loop with given times, and the result file of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np

from pytest_dsr1.core.baselines import B200Row, compare
from pytest_dsr1.core.samples import LoadRun, LoopLag, Outcome, RequestSample, summarize

MS = 1_000_000
START_NS = 7_000_000_000_000

Change: TypeAlias = Callable[[dict[str, Any]], object]


def sample(
    *,
    index: int = 0,
    slot: int = 0,
    sent_ms: float = 0,
    event_ms: Sequence[float] = (100, 120, 140),
    isl: int = 8,
    generated: int | None = None,
    requested: int | None = None,
    prompt_tokens: int | None = -1,
    idle_ms: float = 0,
    outcome: Outcome = Outcome.OK,
) -> RequestSample:
    """A request sent at `sent_ms` whose events came at `event_ms`; one token per event unless said otherwise."""
    generated = len(event_ms) if generated is None else generated
    return RequestSample(
        index=index,
        slot=slot,
        requested_input_tokens=isl,
        requested_output_tokens=generated if requested is None else requested,
        sent_ns=START_NS + round(sent_ms * MS),
        event_ns=START_NS + np.array([round(time_ms * MS) for time_ms in event_ms], dtype=np.int64),
        prompt_tokens=isl if prompt_tokens == -1 else prompt_tokens,
        generated_tokens=generated,
        cached_tokens=None,
        idle_ns=round(idle_ms * MS),
        outcome=outcome,
    )


def run_of(*samples: RequestSample, concurrency: int = 1) -> LoadRun:
    """The run that consists of these requests."""
    return LoadRun(
        samples=samples,
        concurrency=concurrency,
        num_prompts=len(samples),
        cpu_s=0.1,
        wall_s=1.0,
        loop_lag=LoopLag(p50=0.0, p99=0.1, max=0.2, ticks=20),
    )


def closed_loop(
    *,
    concurrency: int,
    num_prompts: int,
    length: Callable[[int], int],
    ttft_ms: Callable[[int], float] = lambda index: 90 + index % 7,
    gap_ms: Callable[[int], float] = lambda index: 10 + index % 3,
    idle_ms: float = 0.25,
    isl: int = 8,
) -> LoadRun:
    """CONC slots; each sends its next request `idle_ms` after its last response. Times are functions of the index."""
    free_ms = [0.0] * concurrency
    samples = []
    for index in range(num_prompts):
        slot = min(range(concurrency), key=free_ms.__getitem__)
        idle = idle_ms if free_ms[slot] else 0.0
        sent_ms = free_ms[slot] + idle
        events = [sent_ms + ttft_ms(index) + step * gap_ms(index) for step in range(length(index))]
        samples.append(sample(index=index, slot=slot, sent_ms=sent_ms, event_ms=events, isl=isl, idle_ms=idle))
        free_ms[slot] = events[-1]
    return run_of(*samples, concurrency=concurrency)


def result_of(
    run: LoadRun, *, isl: int, osl: int, range_ratio: float = 1.0, num_gpus: int = 8, row: B200Row | None = None
) -> dict[str, Any]:
    """The result file of `run`, with the keys that checks read."""
    performance = summarize(run)
    assert performance is not None
    result: dict[str, Any] = {
        "schema_version": 1,
        "engine": "external",
        **msgspec.to_builtins(performance),
        "benchmark_args": {
            "random_input_len": isl,
            "random_output_len": osl,
            "random_range_ratio": range_ratio,
            "num_prompts": run.num_prompts,
            "max_concurrency": run.concurrency,
            "request_rate": "inf",
        },
        "server": {"num_gpus": num_gpus, "num_gpus_source": "server"},
        "tput_per_gpu": (performance.total_token_throughput or 0.0) / num_gpus,
        "client": {
            "requests": {"sent": run.num_prompts, "outcomes": {"ok": len(run.completed)}},
            "aborted": "",
            "prefix_cache": {"requests_told": 1, "prompt_tokens": isl, "cached_tokens": 0},
        },
    }
    if row is not None:
        result |= msgspec.to_builtins(compare(result, row))
    return result


def put(path: str, value: Any) -> Change:
    """A change that sets one value; with a function, one that changes it."""

    def change(result: dict[str, Any]) -> None:
        *parents, key = path.split(".")
        for parent in parents:
            result = result[parent]
        result[key] = value(result[key]) if callable(value) else value

    return change


def drop(*paths: str) -> Change:
    """A change that removes values."""

    def change(result: dict[str, Any]) -> None:
        for path in paths:
            *parents, key = path.split(".")
            inner = result
            for parent in parents:
                inner = inner[parent]
            del inner[key]

    return change


def with_changes(result: Mapping[str, Any], *changes: Change) -> dict[str, Any]:
    """A copy of `result` with these changes."""
    copied: dict[str, Any] = copy.deepcopy(dict(result))
    for change in changes:
        change(copied)
    return copied
