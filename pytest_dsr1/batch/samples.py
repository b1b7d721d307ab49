"""The raw samples of one point in one compact file.

Statistics can be computed again from it. A NumPy archive without pickles. One row per request, warm-ups first
(`warmup`), in order of sending:
`index`, `slot`, `requested_input_tokens`, `requested_output_tokens`, `prompt_tokens`, `generated_tokens`,
`cached_tokens` (-1: not told), `sent_ns` (since the first send of the file), `idle_ns`, `outcome`, `detail`, `events`
(how many); and `event_gap_ns`, one value per event of all requests in a row: the first event's distance from `sent_ns`,
then from event to event. The clock is monotonic; `run` holds the rest as JSON.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pytest_dsr1.core.samples import LoadRun, LoopLag, Outcome, RequestSample

#: May be unknown, which is written as -1.
_COUNTS = ("prompt_tokens", "generated_tokens", "cached_tokens")
_INTEGERS = ("index", "slot", "requested_input_tokens", "requested_output_tokens", "sent_ns", "idle_ns", *_COUNTS)
_RUN = ("concurrency", "num_prompts", "cpu_s", "wall_s", "reconnects", "aborted", "loop_lag")


def samples_to_bytes(run: LoadRun) -> bytes:
    """The archive of `run`."""
    samples = [*run.warmups, *run.samples]
    columns: dict[str, Any] = {
        "warmup": np.arange(len(samples)) < len(run.warmups),
        "events": np.array([len(sample.event_ns) for sample in samples], dtype=np.int64),
        "outcome": np.array([str(sample.outcome) for sample in samples], dtype=np.str_),
        "detail": np.array([sample.detail for sample in samples], dtype=np.str_),
        "event_gap_ns": np.concatenate(
            [np.empty(0, np.int64), *(np.diff(one.event_ns, prepend=np.int64(one.sent_ns)) for one in samples)]
        ),
        "run": np.array(msgspec.json.encode({name: getattr(run, name) for name in _RUN}).decode()),
    }
    for name in _INTEGERS:
        values = (getattr(sample, name) for sample in samples)
        columns[name] = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    columns["sent_ns"] -= columns["sent_ns"].min(initial=np.iinfo(np.int64).max)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **columns)
    return buffer.getvalue()


def read_samples(path: Path) -> LoadRun:
    """What `samples_to_bytes` kept; times count from the first send of the file.

    :raises OSError, ValueError, KeyError: No such archive.
    """
    with np.load(path, allow_pickle=False) as archive:
        columns = {name: archive[name] for name in archive.files}
    ends = np.cumsum(columns["events"])
    rows: list[RequestSample] = []
    for row, end in enumerate(ends):
        integers: dict[str, Any] = {name: int(columns[name][row]) for name in _INTEGERS}
        rows.append(
            RequestSample(
                **integers | {name: None for name in _COUNTS if integers[name] < 0},
                event_ns=integers["sent_ns"] + np.cumsum(columns["event_gap_ns"][end - columns["events"][row] : end]),
                outcome=Outcome(str(columns["outcome"][row])),
                detail=str(columns["detail"][row]),
            )
        )
    fields = msgspec.json.decode(str(columns["run"]))
    # An earlier version wrote the unit into the names.
    lag = LoopLag(**{name.removesuffix("_ms"): value for name, value in fields.pop("loop_lag").items()})
    warmups = int(columns["warmup"].sum())
    return LoadRun(samples=rows[warmups:], warmups=rows[:warmups], loop_lag=lag, **fields)
