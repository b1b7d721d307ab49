"""A Space with scripted answers, for what a real one does not do on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pytest_dsr1.submit.schema import FIELDS_11

SEED_LABELS = tuple(field.label for field in FIELDS_11)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer.

    :param lost: Read the request, then close the connection without an answer.
    :param endless: After the body, send heartbeats until the client closes the connection.
    :param held: Wait for `ScriptedSpace.release` first.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    lost: bool = False
    endless: bool = False
    held: bool = False


def event(name: str, data: str) -> Reply:
    """A stream of one event."""
    return Reply(body=f"event: {name}\ndata: {data}\n\n".encode())


QUEUE_FULL = Reply(status=503, body=b'{"detail": "Queue is full. Max size is 3 and size is 3."}')
ASLEEP = Reply(body=b"<!DOCTYPE html><title>Preparing Space</title>")
POSTED = Reply(body=b'{"event_id": "0123456789abcdef0123456789abcdef"}')
COMPLETE = event("complete", '["ok row 1", {"headers": [], "data": [], "metadata": null}]')


@dataclass
class ScriptedSpace:
    """A running scripted Space. Lists hold the next answers; the last one is repeated.

    :param requests: The requests it got: method, path, headers, body.
    """

    url: str = ""
    config: list[Reply] = field(default_factory=lambda: [Reply(body=b'{"api_prefix": "/gradio_api"}')])
    labels: Sequence[str] = SEED_LABELS
    post: list[Reply] = field(default_factory=lambda: [POSTED])
    get: list[Reply] = field(default_factory=lambda: [COMPLETE])
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    def count(self, method: str, beginning: str = "/gradio_api/call/") -> int:
        return sum(one == method and path.startswith(beginning) for one, path, _, _ in self.requests)

    def answer(self, method: str, path: str) -> Reply:
        if path == "/config":
            return _next(self.config)
        if path == "/gradio_api/info":
            parameters = [{"label": label} for label in self.labels]
            return Reply(body=json.dumps({"named_endpoints": {"/submit_results": {"parameters": parameters}}}).encode())
        return _next(self.post if method == "POST" else self.get)


def _next(replies: list[Reply]) -> Reply:
    return replies.pop(0) if len(replies) > 1 else replies[0]


@contextmanager
def scripted_space(**script: Any) -> Iterator[ScriptedSpace]:
    """Run one on a free port of loopback; `script` has the fields of `ScriptedSpace`."""
    space = ScriptedSpace(**script)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            space.requests.append((self.command, self.path, dict(self.headers), body))
            reply = space.answer(self.command, self.path)
            if reply.held:
                space.release.wait(60)
            self.close_connection = True
            if reply.lost:
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if not reply.endless:
                self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            # Raised when the client closes the connection.
            with suppress(OSError):
                self.wfile.write(reply.body)
                while reply.endless and not space.release.wait(0.01):
                    self.wfile.write(b"event: heartbeat\ndata: null\n\n")

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        space.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield space
        finally:
            space.release.set()
            server.shutdown()
            thread.join()
