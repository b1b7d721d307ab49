"""Ticks that know how late they are."""

from __future__ import annotations

import asyncio
import time

import pytest
import uvloop

from pytest_dsr1.load import ticker


@pytest.mark.parametrize("kind", [ticker._KernelTicker, ticker._LoopTicker])
def test_ticks_come_until_stopped(kind: type[ticker._KernelTicker | ticker._LoopTicker]) -> None:
    """Every tick that falls due is told, with how late it was handled; those that the loop slept through, too."""

    async def main() -> list[int]:
        late: list[int] = []
        enough = asyncio.get_running_loop().create_future()

        def on_tick(late_ns: list[int]) -> None:
            if not late:
                time.sleep(0.02)  # blocks the loop, which is the point
            late.extend(late_ns)
            if len(late) >= 8 and not enough.done():
                enough.set_result(None)

        running = kind(asyncio.get_running_loop(), 5_000_000, on_tick)
        await enough
        running.stop()
        running.stop()
        return late

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        late = runner.run(main())
    assert len(late) >= 8
    # Ticks 2 to 4 fell due while the first was handled: the second waited at least 15 ms, the third 10 ms.
    assert late[1] >= 14_000_000
    assert late[2] >= 9_000_000
