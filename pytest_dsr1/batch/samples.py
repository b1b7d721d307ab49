"""Raw samples of one point in one compact file: statistics can be computed again, a run cannot be repeated.

A NumPy archive without pickles. One row per request, warm-ups first (`warmup`), in order of sending:
`index`, `slot`, `requested_input_tokens`, `requested_output_tokens`, `prompt_tokens`, `generated_tokens`,
`cached_tokens` (-1: not told), `sent_ns` (since the first send of the file), `idle_ns`, `outcome`, `detail`, `events`
(how many); and `event_gap_ns`, one value per event of all requests in a row: the first event's distance from `sent_ns`,
then from event to event. The clock is monotonic; `run` holds the rest as JSON.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pytest_dsr1.core.samples import LoadRun, LoopLag, Nanoseconds, Outcome, RequestSample

_COUNTS = ("prompt_tokens", "generated_tokens", "cached_tokens")
_INTEGERS = ("index", "slot", "requested_input_tokens", "requested_output_tokens", "idle_ns")


def samples_to_bytes(run: LoadRun) -> bytes:
    """The archive of `run`."""
    samples = [*run.warmups, *run.samples]
    origin = min((sample.sent_ns for sample in samples), default=0)
    columns: dict[str, Any] = {
        "warmup": np.arange(len(samples)) < len(run.warmups),
        "sent_ns": np.array([sample.sent_ns - origin for sample in samples], dtype=np.int64),
        "events": np.array([len(sample.event_ns) for sample in samples], dtype=np.int64),
        "outcome": np.array([str(sample.outcome) for sample in samples], dtype=np.str_),
        "detail": np.array([sample.detail for sample in samples], dtype=np.str_),
        "event_gap_ns": np.concatenate([np.empty(0, np.int64), *(_gaps(sample) for sample in samples)]),
        "run": np.array(json.dumps(_run_fields(run))),
    }
    for name in _INTEGERS:
        columns[name] = np.array([getattr(sample, name) for sample in samples], dtype=np.int64)
    for name in _COUNTS:
        values = (getattr(sample, name) for sample in samples)
        columns[name] = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **columns)
    return buffer.getvalue()


def read_samples(path: Path) -> LoadRun:
    """What `samples_to_bytes` kept; times count from the first send of the file.

    :raises OSError, ValueError, KeyError: No such archive.
    """
    with np.load(path, allow_pickle=False) as archive:
        columns = {name: archive[name] for name in archive.files}
    fields = json.loads(str(columns["run"]))
    ends = np.cumsum(columns["events"])
    rows: list[RequestSample] = []
    for row in range(len(ends)):
        gaps = columns["event_gap_ns"][ends[row] - columns["events"][row] : ends[row]]
        sent_ns = int(columns["sent_ns"][row])
        event_ns: Nanoseconds = sent_ns + np.cumsum(gaps)
        integers = {name: int(columns[name][row]) for name in _INTEGERS}
        counts = {name: int(columns[name][row]) for name in _COUNTS}
        told: dict[str, Any] = {name: None if count < 0 else count for name, count in counts.items()}
        rows.append(
            RequestSample(
                **integers,
                **told,
                sent_ns=sent_ns,
                event_ns=event_ns,
                outcome=Outcome(str(columns["outcome"][row])),
                detail=str(columns["detail"][row]),
            )
        )
    warmups = int(columns["warmup"].sum())
    # An earlier version wrote the unit into the names.
    lag = LoopLag(**{name.removesuffix("_ms"): value for name, value in fields.pop("loop_lag").items()})
    return LoadRun(samples=rows[warmups:], warmups=rows[:warmups], loop_lag=lag, **fields)


def _gaps(sample: RequestSample) -> Nanoseconds:
    return np.diff(sample.event_ns, prepend=np.int64(sample.sent_ns))


def _run_fields(run: LoadRun) -> dict[str, Any]:
    return {
        "concurrency": run.concurrency,
        "num_prompts": run.num_prompts,
        "cpu_s": run.cpu_s,
        "wall_s": run.wall_s,
        "reconnects": run.reconnects,
        "aborted": run.aborted,
        "loop_lag": msgspec.to_builtins(run.loop_lag),
    }
