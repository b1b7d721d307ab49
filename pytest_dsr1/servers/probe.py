"""The calls to a server that are not load: what it serves, what it says of itself, its cache."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import requests

from pytest_dsr1.core.server import Served, describe, is_loopback
from pytest_dsr1.servers import ServerError
from pytest_dsr1.servers.ports import holder_of

#: Seconds for one of these calls; a healthy server answers in milliseconds, one busy with a long prefill in seconds.
TIMEOUT_S = 30.0
#: A server that is asked what it is, and fails for a moment, is asked so often, so far apart.
TRIES, PAUSE_S = 3, 0.5
#: SGLang refuses to flush while requests are running; what was cancelled takes a moment to go.
FLUSH_DEADLINE_S = 30.0


def request(method: str, url: str, timeout_s: float = TIMEOUT_S) -> requests.Response:
    """One call, without a proxy on loopback.

    :raises requests.RequestException: No answer.
    """
    with requests.Session() as session:
        session.trust_env = not is_loopback(url)
        return session.request(method, url, timeout=timeout_s)


def _get(url: str, timeout_s: float, tries: int) -> requests.Response:
    """GET, once more where it failed for a moment: a connection that broke, an HTTP 5xx. A time-out is no moment.

    :raises requests.RequestException: No answer.
    """
    for _ in range(tries - 1):
        try:
            if (reply := request("GET", url, timeout_s)).status_code < 500:
                return reply
        except requests.Timeout:
            raise
        except requests.ConnectionError:
            pass
        time.sleep(PAUSE_S)
    return request("GET", url, timeout_s)


def served_models(url: str, timeout_s: float = TIMEOUT_S, tries: int = 1) -> dict[str, dict[str, Any]]:
    """The models that /v1/models names, with what it says of each.

    :param tries: How often it is asked where it fails for a moment.
    :raises ServerError: No answer, or none that lists models.
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
            f"{url}/v1/models answered HTTP {reply.status_code} and names no model; "
            "an OpenAI-compatible server is needed there"
        )
    return models


def answers(url: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether anybody speaks HTTP there."""
    try:
        request("GET", url, timeout_s)
    except requests.RequestException:
        return False
    return True


def is_healthy(url: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether /health answers 200. Never ask while measuring: SGLang runs a prefill for each."""
    try:
        return request("GET", f"{url}/health", timeout_s).status_code == 200
    except requests.RequestException:
        return False


def silence(url: str, deadline_s: float) -> str:
    """Whether a server that stopped answering answers again.

    :return: What it does instead of answering; empty if it answers.
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
        time.sleep(0.5)


def inspect(url: str, model: str | None = None, *, insist: bool = True, tp: int | None = None) -> Served:
    """Ask a running server what it is.

    :param model: The one wanted; None: the only one that it serves.
    :param insist: Whether another model than the wanted one is an error; if not, it is taken as a mere preference.
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
        # Older servers have the same under get_…
        info |= _json_object(f"{url}/{path}") or _json_object(f"{url}/get_{path}")
    if "version" not in info:
        info |= {key: said for key, said in _json_object(f"{url}/version").items() if key == "version"}
    # vLLM says these of each model, and has no /server_info.
    for key, name in (("max_model_len", "max_model_len"), ("root", "model_path")):
        if models[model].get(key) is not None:
            info.setdefault(name, models[model][key])
    return replace(describe(url, model, info, tp), process=_process(url))


def _process(url: str) -> dict[str, Any] | None:
    """Who listens there, if it is this machine and may be seen."""
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
    until = time.monotonic() + deadline_s
    while True:
        try:
            reply = request("POST", f"{url}/flush_cache")
        except requests.RequestException as error:
            return f"/flush_cache failed ({type(error).__name__})"
        if reply.status_code in (200, 404, 405):
            return ""
        if time.monotonic() > until:
            return f"/flush_cache still answers HTTP {reply.status_code} after {deadline_s:.0f} s"
        time.sleep(0.2)  # busy: SGLang flushes only when nothing runs
