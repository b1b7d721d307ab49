"""A server whose every send time is known: it plays a script, on the clock that its client reads.

One thread, one epoll, one heap of what is due. A request has the time at which the kernel received it, a send that just
before its system call. As a process of its own: `with timed_server(ttft_s=0.1, interval_s=0.02) as server: …`.
"""

from __future__ import annotations

import heapq
import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns, time_ns
from typing import Any

from tests.servers.answers import Answer, Composer, EchoFault, Step, completion, error_response, response

#: The last stretch before a send is waited for without sleeping; a sleep may take so much longer.
SPIN_NS = 150_000
#: Ask the kernel for arrival times, and the kind of message that brings them (Linux; Python has no name for it).
_SO_TIMESTAMPNS = 35
#: Of /tokenize; as many as let a corpus of a megabyte be scored in a moment.
BYTES_PER_TOKEN = 16
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Script:
    """What a server does.

    :param answers: How each streamed request is answered, by its number in order of arrival, from 0 on; fields of
        `Answer`, on top of `default`.
    :param default: How all others are.
    :param server_info: What /server_info says, beside `vocab_size` and the model.
    :param later_info: What /server_info says beside it, once this many streamed requests have arrived.
    :param info_failures: So often /server_info answers HTTP 500 before it answers once, and again after that.
    :param gate: Streamed requests are answered in groups of so many, in order of arrival: none of a group is answered
        before all of it have arrived.
    :param dies_at: The number of the streamed request at whose arrival the process ends; None: it does not.
    :param echo_logprob: Of every token of an echoed prompt.
    :param port: To listen on; 0: a free one.
    :param cpu: The core to run on; None: any.
    :param fifo: Real-time priority; 0: none. Whether it was granted, `truth()["fifo"]` says.
    """

    default: dict[str, Any] = field(default_factory=dict)
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    model: str = "scripted"
    vocab_size: int = 128_000
    server_info: dict[str, Any] = field(default_factory=dict)
    later_info: tuple[int, dict[str, Any]] = (0, {})
    info_failures: int = 0
    gate: int = 1
    dies_at: int | None = None
    echo_logprob: float = -1.0
    echo_fault: EchoFault = "none"
    port: int = 0
    cpu: int | None = None
    fifo: int = 0


@dataclass(frozen=True)
class TimedServer:
    """A running one.

    :param url: Of it, without `/v1`.
    """

    url: str
    port: int
    model: str
    process: subprocess.Popen[bytes]

    def truth(self) -> dict[str, Any]:
        """What happened, by the server's stamps.

        `requests`: of each streamed request in order of arrival `first` and `second` (ids of the prompt),
        `prompt_tokens`, `max_tokens`, `received_ns`, and `event_ns`, when each event with choices was sent. Beside it
        `connections` (opened), `open` (now, that which asks included), `in_flight` (the most at a time), `flushes`,
        `fifo`.
        """
        # Imported here: the server's process, which starts for nearly every test, does without it.
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/truth")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return found

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def timed_server(
    *,
    answers: dict[int, dict[str, Any]] | None = None,
    model: str = "scripted",
    vocab_size: int = 128_000,
    server_info: dict[str, Any] | None = None,
    later_info: tuple[int, dict[str, Any]] | None = None,
    info_failures: int = 0,
    gate: int = 1,
    dies_at: int | None = None,
    echo_logprob: float = -1.0,
    echo_fault: EchoFault = "none",
    port: int = 0,
    cpu: int | None = None,
    fifo: int = 0,
    **default: Any,
) -> Iterator[TimedServer]:
    """A scripted server on a port of loopback, ended with the block; options as in `Script` and `Answer`."""
    for fields in (default, *(answers or {}).values()):
        Answer(**fields)  # a misspelt field is an error here, not in the server
    options = {
        "default": default,
        "answers": answers or {},
        "model": model,
        "vocab_size": vocab_size,
        "server_info": server_info or {},
        "later_info": later_info or (0, {}),
        "info_failures": info_failures,
        "gate": gate,
        "dies_at": dies_at,
        "echo_logprob": echo_logprob,
        "echo_fault": echo_fault,
        "port": port,
        "cpu": cpu,
        "fifo": fifo,
    }
    # Not "-m", whose module is compiled at every start.
    command = [sys.executable, "-c", "from tests.servers.timed import main; main()", json.dumps(options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=_ROOT) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the scripted server did not start")
            yield TimedServer(f"http://127.0.0.1:{int(line)}", int(line), model, process)
        finally:
            process.kill()


@dataclass(slots=True, eq=False)
class _Client:
    """A connection, and the request that is being answered on it."""

    sock: socket.socket
    received: bytearray = field(default_factory=bytearray)
    unsent: bytes = b""
    steps: Iterator[Step] | None = None
    step: Step | None = None
    record: dict[str, Any] | None = None


class ScriptedServer:
    """The process's loop."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._default = Composer(Answer(**script.default), script.model)
        self._composers = {
            number: Composer(Answer(**(script.default | fields)), script.model)
            for number, fields in script.answers.items()
        }
        self._listener = socket.create_server(("127.0.0.1", script.port), backlog=1024)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._clients: dict[int, _Client] = {}
        self._due: list[tuple[int, int, _Client]] = []
        self._arrived: deque[tuple[_Client, int]] = deque()
        self._gated: list[_Client] = []
        self._pushed = 0
        self._requests: list[dict[str, Any]] = []
        self._counts = {"connections": 0, "in_flight": 0, "flushes": 0, "fifo": 0}
        self._in_flight = 0
        self._info_asked = 0

    def run(self) -> None:
        """Serve until killed."""
        self._claim_core()
        print(self._listener.getsockname()[1], flush=True)
        while True:
            wait_ns = self._due[0][0] - perf_counter_ns() if self._due else 1 << 40
            # Within the last stretch it polls: a request that arrives then is stamped in time, too.
            for fd, _ in self._epoll.poll(0 if self._arrived else max(0.0, (wait_ns - SPIN_NS) / 1e9)):
                self._ready(fd)
            if self._arrived:
                client, received_ns = self._arrived.popleft()
                self._serve(client, received_ns)
            if self._due and self._due[0][0] <= perf_counter_ns():
                self._send(heapq.heappop(self._due)[2])

    def _claim_core(self) -> None:
        if self._script.cpu is not None:
            os.sched_setaffinity(0, {self._script.cpu})
        if self._script.fifo:
            try:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(self._script.fifo))
                self._counts["fifo"] = self._script.fifo
            except PermissionError:
                pass  # truth() says so

    def _ready(self, fd: int) -> None:
        if fd == self._listener.fileno():
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._clients[sock.fileno()] = _Client(sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            self._counts["connections"] += 1
            return
        client = self._clients.get(fd)
        if client is None:
            return
        if client.unsent:
            self._write(client, b"")
        try:
            data, found, _, _ = client.sock.recvmsg(1 << 18, 64)
        except BlockingIOError:
            return
        except OSError:
            data, found = b"", []
        if not data:
            self._drop(client)
            return
        client.received += data
        self._arrived.append((client, _arrival_ns(found)))

    def _serve(self, client: _Client, now: int) -> None:
        """Answer the request that has arrived, if all of it has."""
        head, found, _ = client.received.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        end = len(head) + 4 + length
        if len(client.received) < end:
            return
        body = bytes(client.received[len(head) + 4 : end])
        del client.received[:end]
        method, path = bytes(head).split(b" ", 2)[:2]
        if path == b"/v1/completions" and (b'"stream":true' in body or b'"stream": true' in body):
            self._stream(client, body, now)
        else:
            self._write(client, self._answer(method, path.partition(b"?")[0].decode(), body))

    def _stream(self, client: _Client, body: bytes, now: int) -> None:
        number = len(self._requests)
        if number == self._script.dies_at:
            os._exit(1)
        first, second, prompt_tokens, max_tokens = _lengths(body)
        client.record = {
            "first": first,
            "second": second,
            "prompt_tokens": prompt_tokens,
            "max_tokens": max_tokens,
            "received_ns": now,
            "event_ns": [],
        }
        self._requests.append(client.record)
        self._in_flight += 1
        self._counts["in_flight"] = max(self._counts["in_flight"], self._in_flight)
        client.steps = self._composers.get(number, self._default).steps(prompt_tokens, max_tokens)
        self._gated.append(client)
        if len(self._requests) % self._script.gate == 0:
            for waiting in self._gated:
                self._schedule(waiting)
            self._gated.clear()

    def _schedule(self, client: _Client) -> None:
        assert client.steps is not None
        assert client.record is not None
        client.step = next(client.steps, None)
        if client.step is not None:
            self._pushed += 1
            due_ns = client.record["received_ns"] + round(client.step.due_s * 1e9)
            heapq.heappush(self._due, (due_ns, self._pushed, client))

    def _send(self, client: _Client) -> None:
        step, record = client.step, client.record
        if step is None or record is None or client.sock.fileno() < 0:
            return
        now = perf_counter_ns()
        if step.data and not self._write(client, step.data):
            return  # the client is gone
        record["event_ns"] += [now] * step.events
        if step.then == "more":
            self._schedule(client)
            return
        if step.then == "hang":
            return
        self._finish(client)
        if step.then == "reset":
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if step.then in ("close", "reset"):
            self._drop(client)

    def _write(self, client: _Client, data: bytes) -> bool:
        """Send what the socket takes now, the rest later; False if there is nobody to send it to."""
        data = client.unsent + data
        try:
            sent = client.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(client)
            return False
        if bool(client.unsent) != bool(rest := data[sent:]):
            self._epoll.modify(client.sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if rest else 0))
        client.unsent = rest
        return True

    def _finish(self, client: _Client) -> None:
        if client.step is not None:
            client.steps = client.step = client.record = None
            self._in_flight -= 1

    def _drop(self, client: _Client) -> None:
        self._finish(client)
        if client.sock.fileno() >= 0:
            self._epoll.unregister(client.sock.fileno())
            del self._clients[client.sock.fileno()]
            client.sock.close()

    def _answer(self, method: bytes, path: str, body: bytes) -> bytes:
        script = self._script
        match path:
            case "/health" | "/health_generate":
                return response(200, {})
            case "/v1/models":
                return response(200, {"object": "list", "data": [{"id": script.model, "object": "model"}]})
            case "/server_info" | "/get_server_info":
                info = {"model_path": script.model, "served_model_name": script.model, "vocab_size": script.vocab_size}
                self._info_asked += 1
                if self._info_asked % (script.info_failures + 1):
                    return error_response(500, "busy")
                after, later = script.later_info
                return response(200, info | script.server_info | (later if len(self._requests) >= after else {}))
            case "/flush_cache":
                self._counts["flushes"] += 1
                return response(200, {"message": "Cache flushed."})
            case "/tokenize":
                # A token is named by the first of its bytes.
                tokens = list(json.loads(body)["prompt"].encode()[::BYTES_PER_TOKEN])
                return response(200, {"tokens": tokens, "count": len(tokens)})
            case "/v1/completions":
                return completion(json.loads(body), script.echo_logprob, script.echo_fault)
            case "/truth":
                return response(200, {"requests": self._requests, "open": len(self._clients)} | self._counts)
        return error_response(404, f"{method.decode()} {path}: not found")


def _arrival_ns(found: list[tuple[int, int, bytes]]) -> int:
    """When the kernel received what was just read, on the performance counter: no matter how busy we were."""
    now, now_realtime = perf_counter_ns(), time_ns()
    for level, kind, data in found:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack("@ll", data)
            return int(seconds * 10**9 + nanoseconds - now_realtime + now)
    return now


def _lengths(body: bytes) -> tuple[int | None, int | None, int, int]:
    """First two ids, number of ids, and max_tokens of a request, without reading the thousand ids between."""
    start = body.find(b'"prompt":[') + len(b'"prompt":[')
    asked = body.find(b'"max_tokens":')
    if start < len(b'"prompt":[') or asked < 0 or body[start : start + 1] == b"[":
        content = json.loads(body)
        prompt = content["prompt"]
        ids = list(prompt.encode()) if isinstance(prompt, str) else prompt
        return ids[0], ids[1] if len(ids) > 1 else None, len(ids), int(content.get("max_tokens", 16))
    end = body.index(b"]", start)
    ids = body[start : min(end, start + 32)].split(b",")
    digits = body[asked + len(b'"max_tokens":') :][:12].split(b",")[0].rstrip(b"}")
    return int(ids[0]), int(ids[1]) if len(ids) > 1 else None, body.count(b",", start, end) + 1, int(digits)


def main() -> None:
    """The server's process: the first argument is its script, as JSON."""
    options = json.loads(sys.argv[1])
    options["answers"] = {int(number): fields for number, fields in options["answers"].items()}
    ScriptedServer(Script(**options)).run()
