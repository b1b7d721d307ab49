"""Ticks that know how late they are."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest
import uvloop

from pytest_dsr1.load.loop import Ticker

PERIOD_NS = 5_000_000


@pytest.mark.parametrize("exact", [True, False])
def test_every_due_tick_is_reported_with_its_delay(exact: bool) -> None:
    """Ticks that were due while the loop was blocked are reported together.

    Only lower bounds are asserted: a busy machine makes delays longer, never shorter.
    """

    async def main() -> list[list[int]]:
        calls: list[list[int]] = []
        enough = asyncio.get_running_loop().create_future()

        def on_tick(late_ns: list[int]) -> None:
            calls.append(late_ns)
            if len(calls) == 1:
                time.sleep(6 * PERIOD_NS / 1e9)  # blocks the loop for at least 6 periods
            elif len(calls) == 3:
                enough.set_result(None)

        ticker = Ticker(asyncio.get_running_loop(), PERIOD_NS, on_tick, exact=exact)
        await enough
        ticker.stop()
        ticker.stop()
        return calls

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        calls = runner.run(main())
    assert len(calls) == 3
    for late_ns in calls:
        assert min(late_ns) >= 0
        assert all(earlier - later == PERIOD_NS for earlier, later in pairwise(late_ns))
    # The first tick of the second call was due at most 2 periods after the block began.
    assert len(calls[1]) >= 4
    assert calls[1][0] >= 4 * PERIOD_NS
