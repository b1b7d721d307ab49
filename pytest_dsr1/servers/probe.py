"""The requests to a server that are not load: models, settings, health."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import requests
import tenacity

from pytest_dsr1.core.server import Served, is_loopback
from pytest_dsr1.servers import ServerError
from pytest_dsr1.servers.ports import holder_of

#: For one request; a healthy server answers in milliseconds, one busy with a long prefill in seconds.
TIMEOUT_S = 30.0
#: Attempts at a request that asks a server what it is, and the pause between two.
TRIES, PAUSE_S = 3, 0.5
#: SGLang refuses to flush while requests are running, and cancelled requests take a moment to end.
FLUSH_DEADLINE_S = 30.0
_FLUSH_PAUSE_S = 0.2


def request(method: str, url: str, timeout_s: float = TIMEOUT_S) -> requests.Response:
    """Send one request; no proxy is used for loopback.

    :raises requests.RequestException: No answer.
    """
    with requests.Session() as session:
        session.trust_env = not is_loopback(url)
        return session.request(method, url, timeout=timeout_s)


def _get(url: str, timeout_s: float, tries: int) -> requests.Response:
    """GET, repeated after a broken connection or an HTTP 5xx.

    It is not repeated after a time-out, which took long enough.

    :raises requests.RequestException: No answer.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_broken_connection)
        | tenacity.retry_if_result(lambda reply: reply.status_code >= 500),
        stop=tenacity.stop_after_attempt(tries),
        wait=tenacity.wait_fixed(PAUSE_S),
        retry_error_callback=_last,
    )
    return retrying(request, "GET", url, timeout_s)


def _is_broken_connection(error: BaseException) -> bool:
    # A connection that is not accepted in time is both.
    return isinstance(error, requests.ConnectionError) and not isinstance(error, requests.Timeout)


def _last(state: tenacity.RetryCallState) -> requests.Response:
    """The last answer, or the last exception, in place of tenacity's own."""
    assert state.outcome is not None
    reply: requests.Response = state.outcome.result()
    return reply


def served_models(url: str, timeout_s: float = TIMEOUT_S, tries: int = 1) -> dict[str, dict[str, Any]]:
    """The models that /v1/models lists, each with its fields.

    :param tries: Attempts where the request fails for a moment.
    :raises ServerError: No answer, or one that lists no models.
    """
    try:
        reply = _get(f"{url}/v1/models", timeout_s, tries)
    except requests.RequestException as error:
        raise ServerError(
            f"no server answers at {url} ({type(error).__name__}); start it, or correct --server-url"
        ) from None
    try:
        models = {str(entry["id"]): dict(entry) for entry in reply.json()["data"]}
    except (ValueError, KeyError, TypeError):
        models = {}
    if reply.status_code != 200 or not models:
        raise ServerError(
            f"{url}/v1/models answered HTTP {reply.status_code} and lists no model; "
            "the URL must be that of an OpenAI-compatible server"
        )
    return models


def answers(url: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether an HTTP server answers there."""
    try:
        request("GET", url, timeout_s)
    except requests.RequestException:
        return False
    return True


def is_healthy(url: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether /health answers 200.

    Never call it while measuring: SGLang runs a prefill for each call.
    """
    try:
        return request("GET", f"{url}/health", timeout_s).status_code == 200
    except requests.RequestException:
        return False


def silence(url: str, deadline_s: float) -> str:
    """Wait for a server that stopped answering to answer again.

    :return: What was found instead of an answer; empty if it answers.
    """
    until = time.monotonic() + deadline_s
    while True:
        try:
            status = request("GET", f"{url}/health", max(until - time.monotonic(), 1.0)).status_code
            found = f"/health answers HTTP {status}"
        # First: a connection that is not accepted in time is a ConnectionError too.
        except requests.Timeout:
            found = "/health is not answered"
        except requests.ConnectionError:
            return f"nobody listens at {url} any more"
        except requests.RequestException as error:
            found = f"/health fails ({type(error).__name__})"
        else:
            if status in (200, 404):
                return ""
        if time.monotonic() > until:
            return f"the server at {url} hangs: {found}, for {deadline_s:.0f} s"
        time.sleep(PAUSE_S)


def inspect(url: str, model: str | None = None, *, insist: bool = True, tp: int | None = None) -> Served:
    """Ask a running server what it is.

    :param model: The wanted one; None: the only one that the server lists.
    :param insist: Whether it is an error if the server lists other models only; if not, `model` is a preference.
    :raises ServerError: No answer, several models to choose from, or not the wanted one.
    """
    models = served_models(url, tries=TRIES)
    listed = ", ".join(models)
    if model not in models:
        if model is not None and insist:
            raise ServerError(f"--model {model!r} is not served at {url}, which names: {listed}; type one of these")
        if len(models) > 1:
            raise ServerError(f"{url} serves several models: {listed}; choose one with --model")
        model = next(iter(models))
    info: dict[str, Any] = {}
    for path in ("model_info", "server_info"):
        # Older servers have the same under the name get_…
        info |= _json_object(f"{url}/{path}") or _json_object(f"{url}/get_{path}")
    if "version" not in info:
        info |= {key: said for key, said in _json_object(f"{url}/version").items() if key == "version"}
    # vLLM has no /server_info; these are fields of its /v1/models.
    for key, name in (("max_model_len", "max_model_len"), ("root", "model_path")):
        if models[model].get(key) is not None:
            info.setdefault(name, models[model][key])
    return replace(Served.from_answers(url, model, info, tp), process=_process(url))


def _process(url: str) -> dict[str, Any] | None:
    """The process that listens there, if it is on this machine and may be seen."""
    parts = urlsplit(url)
    if not is_loopback(url):
        return None
    holder = holder_of(parts.port or (443 if parts.scheme == "https" else 80))
    return None if holder is None else {"pid": holder.pid, "started": round(holder.started, 2)}


def _json_object(url: str) -> dict[str, Any]:
    try:
        reply = _get(url, TIMEOUT_S, TRIES)
        said = reply.json() if reply.status_code == 200 else {}
    except (requests.RequestException, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def flush_cache(url: str, deadline_s: float = FLUSH_DEADLINE_S) -> str:
    """Empty the server's prefix cache.

    :return: Why it was not emptied; empty if it was, or if the server has no such call (404, 405).
    """
    retrying = tenacity.Retrying(
        # Any other status: SGLang is busy, and flushes only when nothing runs.
        retry=tenacity.retry_if_result(lambda reply: reply.status_code not in (200, 404, 405)),
        stop=tenacity.stop_after_delay(deadline_s),
        wait=tenacity.wait_fixed(_FLUSH_PAUSE_S),
        retry_error_callback=_last,
    )
    try:
        status = retrying(request, "POST", f"{url}/flush_cache").status_code
    except requests.RequestException as error:
        return f"/flush_cache failed ({type(error).__name__})"
    if status in (200, 404, 405):
        return ""
    return f"/flush_cache still answers HTTP {status} after {deadline_s:.0f} s"
