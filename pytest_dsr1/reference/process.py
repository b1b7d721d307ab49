"""The engine's process, from its command line to its end.

It prints one line of JSON, ``{"url": …, "pid": …}``, when it serves, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop
from aiohttp import web

from pytest_dsr1.reference.app import NAME, InferenceEngine, make_app
from pytest_dsr1.reference.weights import CheckpointError

WEIGHTS = Path(__file__).parent / "weights"


def main(words: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl+C; the exit status."""
    parser = argparse.ArgumentParser(prog="pytest-dsr1 engine", description="Serve the embedded reference engine")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 (default): any free one")
    parser.add_argument(
        "--model-path", "--model", default=NAME, help=f"A Hugging Face folder (default: {NAME}, the packaged one)"
    )
    parser.add_argument("--context-length", type=int, help="At most the model's own, which is the default")
    parser.add_argument("--max-running", type=int, default=128, help="Most sequences decoded at a time (default: 128)")
    # SGLang's, so that both are launched by the same code.
    parser.add_argument("--served-model-name", choices=[NAME], default=NAME, help="Always this one")
    parser.add_argument("--tensor-parallel-size", type=int, choices=[1], default=1, help="Always 1")
    arguments = parser.parse_args(words)
    folder = WEIGHTS if arguments.model_path == NAME else Path(arguments.model_path)
    try:
        engine = InferenceEngine.load(
            folder.resolve(), max_running=arguments.max_running, context_length=arguments.context_length
        )
    except CheckpointError as error:
        sys.exit(f"pytest-dsr1-reference: {error}")
    # What is loaded stays; a collection during a measurement should not look at it.
    gc.collect()
    gc.freeze()
    uvloop.run(_serve(engine, arguments.host, arguments.port))
    return 0


async def _serve(engine: InferenceEngine, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal_ in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_, stop.set)

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
