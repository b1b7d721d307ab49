"""The client of a Gradio app: what its inputs are called, one POST, and one GET for what became of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import requests
import urllib3

from pytest_dsr1.core.server import is_loopback
from pytest_dsr1.core.text import one_line
from pytest_dsr1.leaderboard.events import EventParser, Outcome, State, outcome
from pytest_dsr1.leaderboard.schema import API_NAME

#: Seconds without a byte; Gradio sends a heartbeat every 15.
READ_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
#: Seconds that an outcome is waited for, even if most of the patience was spent before.
OUTCOME_S = 30.0
#: Seconds before the second attempt; twice as long before each further one, up to the last figure.
BACK_OFF_S = (0.5, 15.0)
#: Bytes; a real /config has some hundred thousand.
MAX_BODY = 16 * 2**20
#: Characters of somebody's answer that are kept.
MAX_ANSWER = 300
#: Nothing was run: the queue is full, the Space sleeps, is being built, or does not want so many at once.
_TRANSIENT = frozenset({404, 408, 425, 429, 503})
#: A proxy that did not hear from the app: during a POST it may have got through.
_GATEWAY = frozenset({502, 504})


class LeaderboardError(Exception):
    """A leaderboard could not be asked, and nothing was sent.

    :param transient: Whether it may work later.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class Leaderboard:
    """A leaderboard at `url`.

    :param token: Of Hugging Face. Goes only into a header, only to this host, only if that is a Space under https or
        this machine, and only after it said that it needs one.
    """

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url
        self._host = urlsplit(url).hostname or ""
        # What no header can hold would be quoted by the error about it.
        usable = token.isascii() and token.isprintable() and " " not in token
        self._token = token if usable else ""
        self._uses_token = False
        self._prefix = ""

    @property
    def _token_fits(self) -> bool:
        space = self._host.endswith(".hf.space") and self.url.startswith("https://")
        return bool(self._token) and (space or is_loopback(self.url))

    # -- asking -----------------------------------------------------------------------------------------------

    def labels(self, patience_s: float) -> tuple[str, ...]:
        """What the inputs of `submit_results` are called, in order.

        :param patience_s: How long a Space may take to wake up.
        :raises LeaderboardError: It did not answer, or is no leaderboard.
        """
        until, pauses = time.monotonic() + patience_s, _pauses()
        said: LeaderboardError | None = None
        while True:
            try:
                return self._labels(until)
            except LeaderboardError as error:
                if not error.transient:
                    raise
                if not _sleep(next(pauses), until):
                    # The time may have run out within this attempt: the one before says more.
                    raise (said or error) from None
                said = error

    def _labels(self, until: float) -> tuple[str, ...]:
        config = self._json("/config", until)
        self._prefix = str(config.get("api_prefix") or "")
        endpoints = self._json(f"{self._prefix}/info", until).get("named_endpoints")
        if not isinstance(endpoints, dict) or f"/{API_NAME}" not in endpoints:
            found = ", ".join(map(str, endpoints)) if isinstance(endpoints, dict) and endpoints else "none"
            raise LeaderboardError(self._said(f"{self.url} has no endpoint /{API_NAME}; it has {found}"))
        try:
            return tuple(str(one["label"]) for one in endpoints[f"/{API_NAME}"]["parameters"])
        except (KeyError, TypeError):
            raise LeaderboardError(f"{self.url}: /info does not say what the inputs are called") from None

    def _json(self, path: str, until: float) -> Mapping[str, Any]:
        try:
            with self._request("GET", path, until) as response:
                status, body = response.status_code, _body(response, until)
                if status in (401, 403, 404) and self._token_fits and not self._uses_token:
                    self._uses_token = True
                    return self._json(path, until)
        except _LOST as error:
            raise LeaderboardError(f"{self.url} cannot be asked ({_kind(error)})", transient=True) from None
        if status != 200:
            raise self._refusal(response, body)
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            what = "HTML" if body.lstrip()[:1] == b"<" else "no JSON"
            raise LeaderboardError(f"{self.url} answers {what}, as a Space that sleeps or is built", transient=True)
        return found

    def _refusal(self, response: requests.Response, body: bytes) -> LeaderboardError:
        """What an answer other than 200 means, if nothing was sent."""
        status = response.status_code
        if 300 <= status < 400:
            target = urlsplit(response.headers.get("Location", "")).hostname or "another page"
            return LeaderboardError(self._said(f"{self.url} redirects to {target}; type the URL where it ends"))
        if status in (401, 403):
            hint = "HF_TOKEN was not accepted" if self._uses_token else "a private Space needs HF_TOKEN"
            return LeaderboardError(f"{self.url} wants a login (HTTP {status}); {hint}")
        transient = status in _TRANSIENT or status in _GATEWAY
        return LeaderboardError(self._said(f"{self.url} answered HTTP {status}: {_detail(body)}"), transient=transient)

    # -- sending ----------------------------------------------------------------------------------------------

    def submit(self, data: Sequence[object], patience_s: float, log: Callable[[State, str], None]) -> Outcome:
        """Send one row, and wait for what becomes of it. Ask for `labels` first.

        :param patience_s: For everything together; the wait for the outcome may take `OUTCOME_S` beyond it.
        :param log: Called with SENDING before each attempt, and with PENDING after one that did not arrive.
        """
        content = json.dumps({"data": list(data)}, allow_nan=False).encode()
        until, pauses = time.monotonic() + patience_s, _pauses()
        while True:
            log(State.SENDING, "")
            try:
                event_id = self._post(content, until)
            except LeaderboardError as error:
                log(State.PENDING, str(error))
                if not error.transient or not _sleep(next(pauses), until):
                    return Outcome(State.PENDING, str(error))
                continue
            if isinstance(event_id, Outcome):
                return event_id
            # However long it took to get in: now that it is there, its outcome is worth a wait.
            return self._wait(event_id, max(until, time.monotonic() + min(patience_s, OUTCOME_S)))

    def _post(self, content: bytes, until: float) -> str | Outcome:
        """One attempt: the event's id, or an outcome that is known without one.

        :raises LeaderboardError: It certainly did not arrive.
        """
        status = None
        try:
            with self._request("POST", f"{self._prefix}/call/{API_NAME}", until, content) as response:
                status = response.status_code
                body = _body(response, until)
        except _LOST as error:
            if isinstance(error, _NoTimeError) or _never_connected(error):
                raise LeaderboardError(f"{self.url} cannot be reached ({_kind(error)})", transient=True) from None
            if status is None or status == 200:
                return Outcome(State.UNKNOWN, f"the connection was lost after it was sent ({_kind(error)})")
            body = b""  # the status alone says enough
        if status in _GATEWAY:
            return Outcome(State.UNKNOWN, f"a proxy answered HTTP {status}, the leaderboard may have got it")
        if status in _TRANSIENT or status in (401, 403) or 300 <= status < 400:
            raise self._refusal(response, body)
        if status != 200:
            return Outcome(State.REFUSED, self._said(f"HTTP {status}: {_detail(body)}"))
        try:
            return str(json.loads(body)["event_id"])
        except (ValueError, KeyError, TypeError):
            if body.lstrip()[:1] == b"<":
                message = f"{self.url} answers HTML, as a Space that sleeps or is built"
                raise LeaderboardError(message, transient=True) from None
            return Outcome(State.UNKNOWN, self._said(f"the answer has no event_id: {_detail(body)}"))

    def _wait(self, event_id: str, until: float) -> Outcome:
        """The one GET: an outcome is handed out once."""
        event_id = self._said(event_id)
        parser = EventParser()
        try:
            path = f"{self._prefix}/call/{API_NAME}/{quote(event_id, safe='')}"
            with self._request("GET", path, until) as response:
                if response.status_code != 200:
                    why = f"asked what became of it, the leaderboard answered HTTP {response.status_code}"
                    return Outcome(State.UNKNOWN, why, event_id)
                for chunk in _chunks(response, until):
                    for event in parser.feed(chunk):
                        if (found := outcome(event, event_id)) is not None:
                            return Outcome(found.state, self._said(found.message), event_id)
        except _TooLongError:
            return Outcome(State.UNKNOWN, "no outcome before the deadline", event_id)
        except _LOST as error:
            return Outcome(State.UNKNOWN, f"the connection was lost while waiting ({_kind(error)})", event_id)
        return Outcome(State.UNKNOWN, "the connection was closed without an outcome", event_id)

    # -- one request ------------------------------------------------------------------------------------------

    def _request(self, method: str, path: str, until: float, content: bytes | None = None) -> requests.Response:
        left = until - time.monotonic()
        if left <= 0:
            raise _NoTimeError
        # A connection of its own: on a reused one, lost is not the same as not sent.
        with requests.Session() as session:
            session.trust_env = not is_loopback(self.url)
            return session.request(
                method,
                self.url + path,
                data=content,
                headers={"Content-Type": "application/json"} if content is not None else {},
                # Given even where there is no token: otherwise requests takes a password from ~/.netrc.
                auth=self._authorize,
                timeout=(min(CONNECT_TIMEOUT_S, left), min(READ_TIMEOUT_S, left)),
                # Never: neither the token nor a row goes where nobody sent it.
                allow_redirects=False,
                stream=True,
            )

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._uses_token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _said(self, text: str) -> str:
        """Somebody's text, for a line of ours: printable, short, and without the token, which he may echo."""
        if self._token:
            text = text.replace(self._token, "[HF_TOKEN]")
        text = one_line(text)
        return text if len(text) <= MAX_ANSWER else f"{text[:MAX_ANSWER]}…"


class _TooLongError(Exception):
    """The deadline has passed, or a body is longer than any that is wanted."""


class _NoTimeError(_TooLongError):
    """The deadline had passed before anything was sent."""


#: How a request can fail on its way; bodies are read below requests, which words no errors there.
_LOST = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, _TooLongError)


def _chunks(response: requests.Response, until: float) -> Iterator[bytes]:
    """A body as it arrives: `iter_content` would wait until a chunk is full.

    :raises _TooLongError: The deadline has passed, however lively the connection is.
    """
    while chunk := response.raw.read1(65536, decode_content=True):
        yield chunk
        if time.monotonic() > until:
            raise _TooLongError


def _body(response: requests.Response, until: float) -> bytes:
    body = b""
    for chunk in _chunks(response, until):
        body += chunk
        if len(body) > MAX_BODY:
            raise _TooLongError
    return body


def _detail(body: bytes) -> str:
    text = body[: 4 * MAX_ANSWER].decode("utf-8", "replace")
    try:
        said = json.loads(body)
    except ValueError:
        return "a page of HTML" if text.lstrip()[:1] == "<" else text or "nothing"
    detail = said.get("detail", said) if isinstance(said, dict) else said
    return detail if isinstance(detail, str) else json.dumps(detail)


def _kind(error: Exception) -> str:
    """What went wrong, without URLs, headers and addresses."""
    if isinstance(error, _TooLongError):
        return "it took too long"
    return type(error).__name__


def _never_connected(error: Exception) -> bool:
    if isinstance(error, _TooLongError):
        return False
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, urllib3.exceptions.NewConnectionError)


def _pauses() -> Iterator[float]:
    pause, longest = BACK_OFF_S
    while True:
        yield pause
        pause = min(2 * pause, longest)


def _sleep(pause: float, until: float) -> bool:
    """Wait; False if there is no time left for another attempt."""
    if time.monotonic() + pause >= until:
        return False
    time.sleep(pause)
    return True
