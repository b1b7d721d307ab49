"""Raw samples come back as they were kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pytest_dsr1.batch.samples import read_samples, samples_to_bytes
from pytest_dsr1.core.samples import LoadRun, LoopLag, Outcome, RequestSample


def sample(index: int, sent_ns: int, events: list[int], outcome: Outcome = Outcome.OK) -> RequestSample:
    return RequestSample(
        index=index,
        slot=index % 2,
        requested_input_tokens=16,
        requested_output_tokens=4,
        sent_ns=sent_ns,
        event_ns=np.array(events, np.int64),
        prompt_tokens=16,
        generated_tokens=4,
        cached_tokens=None if index else 3,
        idle_ns=index,
        outcome=outcome,
        detail="" if outcome is Outcome.OK else "naïve: what went wrong",
    )


def test_round_trip(tmp_path: Path) -> None:
    """Every field of every request, warm-ups apart, to the nanosecond; times count from the file's first send."""
    run = LoadRun(
        warmups=[sample(0, 5_000, [6_000])],
        samples=[
            sample(0, 10_000, [11_000, 11_000, 19_001]),
            sample(1, 10_007, [], Outcome.TIMED_OUT),
            sample(2, 20_000, [21_003]),
        ],
        concurrency=2,
        num_prompts=3,
        cpu_s=0.25,
        wall_s=1.5,
        loop_lag=LoopLag(p50=0.1, p99=0.2, max=0.3, ticks=20),
        reconnects=1,
        aborted="why",
    )
    (tmp_path / "samples.npz").write_bytes(samples_to_bytes(run))
    again = read_samples(tmp_path / "samples.npz")

    assert (again.concurrency, again.num_prompts, again.cpu_s, again.wall_s) == (2, 3, 0.25, 1.5)
    assert (again.loop_lag, again.reconnects, again.aborted) == (run.loop_lag, 1, "why")
    for kept, read in zip([*run.warmups, *run.samples], [*again.warmups, *again.samples], strict=True):
        assert read.sent_ns == kept.sent_ns - 5_000
        assert read.event_ns.tolist() == [event - 5_000 for event in kept.event_ns.tolist()]
        for name in ("index", "slot", "prompt_tokens", "cached_tokens", "idle_ns", "outcome", "detail"):
            assert getattr(read, name) == getattr(kept, name), name


def test_a_run_without_requests(tmp_path: Path) -> None:
    """A server that was never reached leaves a file all the same."""
    lag = LoopLag(p50=0, p99=0, max=0, ticks=0)
    run = LoadRun(samples=[], concurrency=1, num_prompts=3, cpu_s=0, wall_s=0, loop_lag=lag, aborted="unreachable")
    (tmp_path / "samples.npz").write_bytes(samples_to_bytes(run))
    assert read_samples(tmp_path / "samples.npz").aborted == "unreachable"
