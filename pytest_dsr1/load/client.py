"""HTTP/1.1 connections that carry one request at a time and time every read.

A read costs one reading of the clock, two appends and one call of the HTTP parser, which looks for the end of the
response. The content of the response is parsed after the measured window.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import cast
from urllib.parse import urlsplit

import httptools

from pytest_dsr1.core.samples import Outcome
from pytest_dsr1.load.prompts import Request
from pytest_dsr1.load.recording import Recording

#: Deadline for opening a connection, TLS handshake included.
CONNECT_TIMEOUT_S = 30.0
_UNANSWERED = "the server closed the connection before any byte of a response"


@dataclass(frozen=True, slots=True)
class Target:
    """The endpoint that requests are sent to.

    :param host: Host name or address, as a resolver takes it.
    :param authority: Host and port as the Host header has them.
    :param path: Path of the completions endpoint.
    :param tls: Whether the connection is encrypted.
    """

    host: str
    port: int
    authority: str
    path: str
    tls: bool

    @classmethod
    def from_url(cls, url: str) -> Target:
        """The completions endpoint of the server at `url`, given without `/v1`.

        :raises ValueError: if it is not an http or https URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not the URL of a server; it should look like http://127.0.0.1:8888")
        tls = parts.scheme == "https"
        authority = parts.netloc.rpartition("@")[2]
        path = f"{parts.path.rstrip('/')}/v1/completions"
        return cls(parts.hostname, parts.port or (443 if tls else 80), authority, path, tls)


class Connection(asyncio.Protocol):
    """One connection to the server.

    :param on_end: Called when a request's recording is complete, with the time of its last read in ns. It may start
        the next request at once.
    """

    def __init__(self, on_end: Callable[[int], None]) -> None:
        self.served = 0
        """Number of requests that ended on this connection."""
        self.status = 0
        """HTTP status of the last response; 0 before its head was read."""
        self._on_end = on_end
        self._recording: Recording | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        # The attribute is looked up once, not at every read.
        self._feed = self._parser.feed_data
        self._complete = False
        self._keep_alive = True
        self._framed = False

    @property
    def usable(self) -> bool:
        """Whether another request can be sent on this connection, as far as is known."""
        return self._transport is not None and self._keep_alive and not self._transport.is_closing()

    def start(self, request: Request, recording: Recording) -> int:
        """Write a request and return the time just before its first byte was written.

        The reads of the response go into `recording`.

        :return: Time in ns of the performance counter.
        """
        assert self._transport is not None
        self._recording = recording
        self._stamp = recording.stamps.append
        self._keep = recording.reads.append
        self._complete = self._framed = False
        self.status = 0
        sent_ns = perf_counter_ns()
        self._transport.writelines(request.buffers)
        return sent_ns

    def give_up(self, ending: Outcome, note: str) -> None:
        """End the request in flight now, and close the connection."""
        self.close()
        self._end(ending, note, perf_counter_ns())

    def close(self) -> None:
        """Drop the connection. A request in flight on it is not reported."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # uvloop delays a write to the end of the loop's current iteration, unless the write exceeds the high-water
        # mark: then it writes at once. With a delay, the send time would be earlier than the actual write.
        self._transport.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        now = perf_counter_ns()
        if self._recording is None:
            # Bytes that no request asked for: they could not be told apart from the next response.
            self.close()
            return
        self._stamp(now)
        self._keep(data)
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._keep_alive = False
            if not self._complete:
                self.give_up(Outcome.MALFORMED, str(error))
                return
        if self._complete:
            self._end(Outcome.OK, "", now)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        recording = self._recording
        if recording is None:
            return
        if exc is not None:
            self._end(Outcome.CONNECTION_LOST, f"connection lost: {exc}", perf_counter_ns())
        elif not recording.reads:
            self._end(Outcome.CONNECTION_LOST, _UNANSWERED, perf_counter_ns())
        elif self.status and not self._framed:
            # A response without a length ends where the connection does.
            self._end(Outcome.OK, "", recording.stamps[-1])
        else:
            self._end(Outcome.TRUNCATED, "the server closed the connection", perf_counter_ns())

    # httptools

    def on_message_begin(self) -> None:
        if self._complete:
            # Bytes after the response that no request asked for: they could not be told apart from the next response.
            self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._framed = self._framed or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status = self._parser.get_status_code()
        # An interim response (100, 103) is followed by the final one, which counts.
        self.status = status if status >= 200 else 0

    def on_message_complete(self) -> None:
        if self.status and not self._complete:
            self._complete = True
            self._keep_alive = self._keep_alive and self._parser.should_keep_alive()

    def _end(self, ending: Outcome, note: str, now: int) -> None:
        recording = self._recording
        if recording is None:
            return
        recording.ending = ending
        recording.note = note
        self._recording = None
        self.served += 1
        if not self._keep_alive:
            self.close()
        self._on_end(now)


class Dialer:
    """Opens connections to one server; its name is resolved once.

    :param target: The server.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._address = target.host, target.port
        # Verifies the server's certificate against the system's authorities, or SSL_CERT_FILE's.
        self._tls = ssl.create_default_context() if target.tls else None

    async def open(self, on_end: Callable[[int], None]) -> Connection:
        """Open a new connection; uvloop sets TCP_NODELAY.

        :raises OSError: if none of the server's addresses accepts it.
        """
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(on_end),
                *self._address,
                ssl=self._tls,
                server_hostname=self.target.host if self._tls else None,
            )
        # All later connections use the address that worked.
        self._address = transport.get_extra_info("peername")[:2]
        return connection
