"""The engine's process, from its command line to its end.

It prints one JSON line, ``{"url": …, "pid": …}``, when it can be asked, and nothing more. Where standard input is a
pipe it is a life line: the process ends when the other end closes, however its parent died.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import stat
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from pytest_dsr1.reference.app import InferenceEngine, make_app
from pytest_dsr1.reference.weights import CheckpointError

WEIGHTS = Path(__file__).parent / "weights"


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m pytest_dsr1.reference", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 (default): any free one")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="A Hugging Face folder (default: the packaged one)")
    parser.add_argument("--context-length", type=int, help="At most the model's own, which is the default")
    parser.add_argument("--max-running", type=int, default=128, help="Most sequences decoded at a time (default: 128)")
    arguments = parser.parse_args()
    try:
        engine = InferenceEngine.load(
            arguments.model.resolve(), max_running=arguments.max_running, context_length=arguments.context_length
        )
    except CheckpointError as error:
        sys.exit(f"pytest-dsr1-reference: {error}")
    # What is loaded stays; a collection during a measurement should not look at it.
    gc.collect()
    gc.freeze()
    uvloop.run(_serve(engine, arguments.host, arguments.port))


async def _serve(engine: InferenceEngine, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal_ in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_, stop.set)
    if _is_pipe(sys.stdin.fileno()):
        loop.add_reader(sys.stdin.fileno(), _on_life_line, stop)

    # A handler is cancelled when its client is gone, which frees the sequence's slot.
    runner = web.AppRunner(make_app(engine), access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        address = runner.addresses[0]
        print(json.dumps({"url": f"http://{address[0]}:{address[1]}", "pid": os.getpid()}), flush=True)
        computing = asyncio.create_task(engine.run())
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait((computing, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if computing.done():
            computing.result()  # an engine that fails ends the process: better no server than one that hangs
        computing.cancel()
    finally:
        await runner.cleanup()


def _is_pipe(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _on_life_line(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()
