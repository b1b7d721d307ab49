"""Gradio's protocol: GET the labels, POST a row once, GET its outcome once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import requests
import urllib3

from pytest_dsr1.core.server import is_loopback
from pytest_dsr1.core.text import one_line
from pytest_dsr1.submit.events import (
    Delivery,
    SubmissionState,
    delivery_of,
    error_detail,
    is_html,
    parse_events,
    parsed,
)
from pytest_dsr1.submit.schema import API_NAME, Row

CONNECT_TIMEOUT_S = 10.0
#: Longest time without a byte. Gradio sends a heartbeat every 15 s.
READ_TIMEOUT_S = 30.0
#: Time for the answer to a row that was sent, and for its outcome, even if the deadline is nearer.
OUTCOME_S = 30.0
#: Pause before the second attempt, doubled before each further one; and the longest pause.
BACK_OFF_S = (0.5, 15.0)
#: Characters of an answer that a message quotes.
MAX_ANSWER = 300
#: The handler did not run: the queue is full, the Space sleeps or is being built, or it limits the rate of requests.
_TRANSIENT = frozenset({404, 408, 425, 429, 503})
#: A proxy had no answer from the app. After a POST, the app may have received it.
_GATEWAY = frozenset({502, 504})
_LOGIN = frozenset({401, 403})
_AS_IF_ASLEEP = "like a Space that sleeps or is being built"
#: All that a request can raise. Bodies are read from urllib3, whose errors requests does not translate there.
_TRANSPORT_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


class LeaderboardError(Exception):
    """A leaderboard could not be asked, or certainly did not receive what was sent.

    :param transient: Whether a later attempt may succeed.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class Leaderboard:
    """The leaderboard at `url`.

    :param token: A token of Hugging Face. It is sent as a header only, only to a Space under https or to this machine,
        and only after the leaderboard answered that it requires one.
    """

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url
        is_space = (urlsplit(url).hostname or "").endswith(".hf.space") and url.startswith("https://")
        # The error about a header that cannot be sent would quote the token.
        is_header = token.isascii() and token.isprintable() and " " not in token
        self._token = token if is_header and (is_space or is_loopback(url)) else ""
        self._uses_token = False
        self._api_prefix = ""

    def labels(self, timeout_s: float) -> tuple[str, ...]:
        """The labels of the inputs of `submit_results`, in order.

        :param timeout_s: For all attempts together; a Space that sleeps needs time to start.
        :raises LeaderboardError: There was no answer in time, or this is no leaderboard.
        """
        deadline, errors = time.monotonic() + timeout_s, list[LeaderboardError]()
        for _ in _attempts(deadline):
            try:
                return self._labels(deadline)
            except LeaderboardError as error:
                if not error.transient:
                    raise
                errors.append(error)
        # The deadline may have cut the last attempt short; the one before says more.
        raise errors[-2:][0]

    def _labels(self, deadline: float) -> tuple[str, ...]:
        config = self._get_json("/config", deadline)
        self._api_prefix = str(config.get("api_prefix") or "")
        endpoints = self._get_json(f"{self._api_prefix}/info", deadline).get("named_endpoints")
        if not isinstance(endpoints, dict) or f"/{API_NAME}" not in endpoints:
            found = ", ".join(map(str, endpoints)) if isinstance(endpoints, dict) and endpoints else "none"
            raise self._error(f"has no endpoint /{API_NAME}; it has {found}")
        try:
            return tuple(str(one["label"]) for one in endpoints[f"/{API_NAME}"]["parameters"])
        except (KeyError, TypeError):
            raise self._error("does not list the labels of its inputs in /info") from None

    def _get_json(self, path: str, deadline: float) -> Mapping[str, Any]:
        try:
            with self._request("GET", path, deadline) as response:
                status, body = response.status_code, b"".join(_chunks(response, deadline))
        except _TRANSPORT_ERRORS as error:
            raise self._error(f"cannot be reached ({_name_of(error)})", transient=True) from None
        # A private Space answers 404 to whoever has no token.
        if status in _LOGIN | {404} and self._token and not self._uses_token:
            self._uses_token = True
            return self._get_json(path, deadline)
        if status != 200:
            raise self._not_received(response, body)
        found = parsed(body)
        if not isinstance(found, dict):
            what = "HTML" if is_html(body) else "something that is no JSON object"
            raise self._error(f"answers with {what}, {_AS_IF_ASLEEP}", transient=True)
        return found

    def _not_received(self, response: requests.Response, body: bytes) -> LeaderboardError:
        """The error for a status that says that no handler has run."""
        status = response.status_code
        if 300 <= status < 400:
            target = urlsplit(response.headers.get("Location", "")).hostname or "another page"
            return self._error(f"redirects to {target}; type the URL where it ends")
        if status in _LOGIN:
            hint = "HF_TOKEN was not accepted" if self._uses_token else "a private Space needs HF_TOKEN"
            return self._error(f"requires a login (HTTP {status}); {hint}")
        is_transient = status in _TRANSIENT | _GATEWAY
        return self._error(f"answered HTTP {status}: {error_detail(body)}", transient=is_transient)

    def _error(self, fact: str, *, transient: bool = False) -> LeaderboardError:
        return LeaderboardError(self._shortened(f"{self.url} {fact}"), transient=transient)

    def submit(self, data: Row, timeout_s: float) -> Iterator[Delivery]:
        """Send one row and wait for its outcome. Call `labels` first.

        Yields every change of its state: SENDING before each attempt, PENDING after one that was not received. The last
        one is the outcome.

        :param timeout_s: For all attempts together. A request that begins in time gets up to `OUTCOME_S` for its
            answer, even if that takes longer: without an answer it would be unknown whether the row arrived.
        """
        content = json.dumps({"data": data}, allow_nan=False).encode()
        deadline = time.monotonic() + timeout_s

        def extended() -> float:
            return max(deadline, time.monotonic() + min(timeout_s, OUTCOME_S))

        for _ in _attempts(deadline):
            yield Delivery(SubmissionState.SENDING)
            try:
                posted = self._post(content, extended())
            except LeaderboardError as error:
                yield Delivery(SubmissionState.PENDING, str(error))
                if not error.transient:
                    return
                continue
            if posted.state is SubmissionState.SENDING:
                posted = self._wait(posted.event_id, extended())
            yield posted
            return

    def _post(self, content: bytes, deadline: float) -> Delivery:
        """Send once; SENDING, with the event's id, if the outcome has to be asked for.

        :raises LeaderboardError: The row was certainly not received.
        """
        status, body = None, b""
        try:
            with self._request("POST", f"{self._api_prefix}/call/{API_NAME}", deadline, content) as response:
                status = response.status_code
                body = b"".join(_chunks(response, deadline))
        except _TRANSPORT_ERRORS as error:
            if _never_connected(error):
                raise self._error(f"cannot be reached ({_name_of(error)})", transient=True) from None
            if status is None or status == 200:
                message = f"the connection was lost after the row was sent ({_name_of(error)})"
                return Delivery(SubmissionState.UNKNOWN, message)
            # Any other status decides the outcome without a body.
        if status in _GATEWAY:
            message = f"a proxy answered HTTP {status}, the leaderboard may have received the row"
            return Delivery(SubmissionState.UNKNOWN, message)
        if status in _TRANSIENT | _LOGIN or 300 <= status < 400:
            raise self._not_received(response, body)
        if status != 200:
            return Delivery(SubmissionState.REFUSED, self._shortened(f"HTTP {status}: {error_detail(body)}"))
        answer = parsed(body)
        if isinstance(answer, dict) and "event_id" in answer:
            return Delivery(SubmissionState.SENDING, event_id=self._shortened(str(answer["event_id"])))
        if is_html(body):
            raise self._error(f"answers with HTML, {_AS_IF_ASLEEP}", transient=True)
        message = f"the leaderboard's answer has no event_id: {error_detail(body)}"
        return Delivery(SubmissionState.UNKNOWN, self._shortened(message))

    def _wait(self, event_id: str, deadline: float) -> Delivery:
        """Read the outcome. There is one GET only, because Gradio reports an outcome once."""
        try:
            path = f"{self._api_prefix}/call/{API_NAME}/{quote(event_id, safe='')}"
            with self._request("GET", path, deadline) as response:
                if response.status_code == 200:
                    for name, data in parse_events(_chunks(response, deadline)):
                        if (found := delivery_of(name, data)) is not None:
                            return Delivery(found.state, self._shortened(found.message), event_id)
                    message = "the connection was closed without an outcome"
                else:
                    message = f"asked for the outcome, the leaderboard answered HTTP {response.status_code}"
        except (TimeoutError, LeaderboardError):
            message = "no outcome before the deadline"
        except _TRANSPORT_ERRORS as error:
            message = f"the connection was lost while waiting for the outcome ({_name_of(error)})"
        return Delivery(SubmissionState.UNKNOWN, message, event_id)

    def _request(self, method: str, path: str, deadline: float, content: bytes | None = None) -> requests.Response:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise self._error("cannot be reached before the deadline", transient=True)
        # A new connection for each request: on a reused one, a lost connection does not say whether a POST was sent.
        with requests.Session() as session:
            session.trust_env = not is_loopback(self.url)
            return session.request(
                method,
                self.url + path,
                data=content,
                headers={"Content-Type": "application/json"} if content is not None else {},
                # Also without a token: otherwise requests would send a password from ~/.netrc.
                auth=self._authorize,
                timeout=(min(CONNECT_TIMEOUT_S, left_s), min(READ_TIMEOUT_S, left_s)),
                # A redirect would send the token and the row to a host that the user did not name.
                allow_redirects=False,
                stream=True,
            )

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._uses_token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _shortened(self, text: str) -> str:
        """A leaderboard's text for a message: one line, short, without an echoed token."""
        if self._token:
            text = text.replace(self._token, "[HF_TOKEN]")
        text = one_line(text)
        return text if len(text) <= MAX_ANSWER else f"{text[:MAX_ANSWER]}…"


def _chunks(response: requests.Response, deadline: float) -> Iterator[bytes]:
    """A body as it arrives; `iter_content` would wait until a chunk is full.

    :raises TimeoutError: The deadline has passed; bytes that keep arriving do not extend it.
    """
    while chunk := response.raw.read1(65536, decode_content=True):
        yield chunk
        if time.monotonic() > deadline:
            raise TimeoutError


def _name_of(error: Exception) -> str:
    """An error's name, because its text may contain URLs, headers and addresses."""
    return "it took too long" if isinstance(error, TimeoutError) else type(error).__name__


def _never_connected(error: Exception) -> bool:
    """Whether the connection could not even be opened, so that nothing was sent."""
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, urllib3.exceptions.NewConnectionError)


def _attempts(deadline: float) -> Iterator[None]:
    """One item per attempt, until the growing pause between two passes the deadline."""
    pause_s, longest_s = BACK_OFF_S
    while True:
        yield
        if time.monotonic() + pause_s >= deadline:
            return
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, longest_s)
