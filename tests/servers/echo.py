"""A completions server with a known model: it echoes log-probabilities that a test can add up, or misbehaves."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

#: The prefix token of the byte-level vocabulary that this server's tests use.
BOS = 256


def logprob(token: int) -> float:
    """What the model says of `token`, whatever stands before it: exact in binary, so that sums are too."""
    return -(1 + token % 8) / 8


def encode(text: str) -> list[int]:
    """One token per UTF-8 byte."""
    return list(text.encode())


@dataclass
class EchoServer:
    """What the server does, and what it saw.

    :param gate: Requests that must be in flight together before the first is answered.
    :param alter: Changes the list of log-probabilities before it is sent.
    :param answer: Replaces the whole answer to a completion.
    :param hang_ups: Connections that are still to be cut without an answer.
    """

    gate: int = 1
    alter: Callable[[list[Any]], list[Any]] = lambda entries: entries
    answer: Callable[[web.Request], web.Response] | None = None
    hang_ups: int = 0
    usage: dict[str, Any] = field(default_factory=dict)
    tokenize: Callable[[str, bool], Any] | None = None
    url: str = ""
    peak: int = 0
    payloads: list[dict[str, Any]] = field(default_factory=list)
    _in_flight: int = field(default=0, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)
    _open: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        payload = await request.json()
        self.payloads.append(payload)
        self._in_flight += 1
        with self._changed:
            self.peak = max(self.peak, self._in_flight)
            self._changed.notify_all()
        if self._in_flight >= self.gate:
            self._open.set()
        try:
            await self._open.wait()
            if self.hang_ups:
                self.hang_ups -= 1
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            return self.answer(request) if self.answer else self._echoed(payload)
        finally:
            self._in_flight -= 1

    def reached(self, count: int) -> None:
        """Wait until `count` requests have been in flight together."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.peak >= count, timeout=60)

    def _echoed(self, payload: dict[str, Any]) -> web.Response:
        (prompt,) = payload["prompt"]
        entries = self.alter([None, *map(logprob, prompt[1:]), logprob(0)])
        top = [None if entry is None else {"token": entry} for entry in entries]
        logprobs = {"token_logprobs": entries, "top_logprobs": top}
        choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": logprobs}
        # Not json_response of a strict encoder: NaN must go out as Python's JSON writes it.
        return web.Response(
            text=json.dumps({"object": "text_completion", "choices": [choice], "usage": self.usage}),
            content_type="application/json",
        )

    async def tokens(self, request: web.Request) -> web.Response:
        if self.tokenize is None:
            raise web.HTTPNotFound
        payload = await request.json()
        return web.json_response(self.tokenize(payload["prompt"], payload["add_special_tokens"]))

    @contextmanager
    def running(self) -> Iterator[EchoServer]:
        """Serve on a free port of loopback, in a thread of its own."""
        started, stop = threading.Event(), asyncio.Event()
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            loop = asyncio.get_running_loop()
            loops.append(loop)
            app = web.Application()
            app.router.add_post("/v1/completions", self.completions)
            app.router.add_post("/tokenize", self.tokens)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            assert runner.server is not None
            listener = await loop.create_server(runner.server, "127.0.0.1", 0)
            self.url = "http://127.0.0.1:{1}".format(*listener.sockets[0].getsockname())
            started.set()
            await stop.wait()
            self._open.set()
            # asyncio leaks a connection that is accepted in the round before its listener closes, which a test that
            # ends early can hit: take no more, and let those that came become connections that cleanup() closes.
            loop.remove_reader(listener.sockets[0])
            for _ in range(3):
                await asyncio.sleep(0)
            listener.close()
            await runner.cleanup()

        thread = threading.Thread(target=asyncio.run, args=(serve(),))
        thread.start()
        started.wait()
        try:
            yield self
        finally:
            loops[0].call_soon_threadsafe(stop.set)
            thread.join()
