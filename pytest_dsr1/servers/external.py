"""A server that somebody else runs, and all requests to servers but the load."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import requests
import tenacity

from pytest_dsr1.core.config import Point
from pytest_dsr1.core.server import Served, is_loopback
from pytest_dsr1.servers import ServerError
from pytest_dsr1.servers.process import holder_of

#: For one request; a healthy server answers in milliseconds, one busy with a long prefill in seconds.
TIMEOUT_S = 30.0
#: How long a server on --port may take to answer.
PROBE_TIMEOUT_S = 2.0
#: Attempts at a request that asks a server what it is, and the pause between two.
TRIES, PAUSE_S = 3, 0.5
#: SGLang refuses to flush while requests are running, and cancelled requests take a moment to end.
FLUSH_DEADLINE_S = 30.0


@dataclass
class ExternalServer:
    """A running OpenAI-compatible server: never started, stopped or reconfigured.

    :param model: The one to measure; None: the only one that it serves.
    :param insist: Whether `model` must be served (see `inspect`).
    :param tp: `--tp` as typed: the number of GPUs where the server does not say it.
    :param flush: Whether its prefix cache may be emptied before each measurement.
    """

    url: str
    model: str | None = None
    insist: bool = True
    tp: int | None = None
    flush: bool = True

    def serve(self, point: Point | None = None) -> Served:
        return self.inspect()

    def inspect(self) -> Served:
        return inspect(self.url, self.model, insist=self.insist, tp=self.tp)

    def flush_cache(self) -> None:
        if self.flush and (problem := flush_cache(self.url)):
            warnings.warn(f"{self.url}: {problem}; its prefix cache may hold earlier prompts", stacklevel=2)

    def problem(self, patience_s: float) -> str:
        return silence(self.url, patience_s)

    def stop(self) -> None:
        """Do nothing: its owner stops it."""

    def closing_lines(self, *, interrupted: bool) -> Sequence[str]:
        return ()


class BoundServer(ExternalServer):
    """The controller's server in an xdist worker.

    :param served: What the controller found.
    """

    def __init__(self, served: Served, flush: bool = True) -> None:
        super().__init__(served.url, served.model, flush=flush)
        self.served = served

    def inspect(self) -> Served:
        before, found = self.served, super().inspect()
        # Only the controller knows these.
        found = replace(found, engine=before.engine, launch=before.launch, concurrent_servers=before.concurrent_servers)
        if found.num_gpus is None:
            found = replace(found, num_gpus=before.num_gpus, num_gpus_source=before.num_gpus_source)
        return found


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
    served = Served.from_answers(url, model, info, tp)
    if not is_loopback(url):
        return served
    parts = urlsplit(url)
    # It may be a process of another user, which cannot be seen.
    holder = holder_of(parts.port or (443 if parts.scheme == "https" else 80))
    process = None if holder is None else {"pid": holder.pid, "started": round(holder.started, 2)}
    return replace(served, process=process)


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


def healthy_models(url: str, timeout_s: float = PROBE_TIMEOUT_S) -> tuple[str, ...] | None:
    """The models of a healthy server; empty if unhealthy, None without an answer.

    Never call it while measuring: SGLang runs a prefill for each call of /health.
    """
    try:
        if _request("GET", f"{url}/health", timeout_s).status_code != 200:
            return ()
    except requests.ConnectionError:
        return None
    except requests.RequestException:
        return ()
    try:
        return tuple(served_models(url, timeout_s))
    except ServerError:
        return ()


def silence(url: str, deadline_s: float) -> str:
    """Wait for a server that stopped answering to answer again.

    :return: What was found instead of an answer; empty if it answers.
    """
    until = time.monotonic() + deadline_s
    while True:
        try:
            status = _request("GET", f"{url}/health", max(until - time.monotonic(), 1.0)).status_code
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


def flush_cache(url: str, deadline_s: float = FLUSH_DEADLINE_S) -> str:
    """Empty the server's prefix cache.

    :return: Why it was not emptied; empty if it was, or if the server has no such call (404, 405).
    """
    done = (200, 404, 405)
    # Any other status: SGLang is busy, and flushes only when nothing runs.
    busy = tenacity.retry_if_result(lambda reply: reply.status_code not in done)
    retrying = _retrying(busy, tenacity.stop_after_delay(deadline_s), 0.2)
    try:
        status = retrying(_request, "POST", f"{url}/flush_cache", TIMEOUT_S).status_code
    except requests.RequestException as error:
        return f"/flush_cache failed ({type(error).__name__})"
    return "" if status in done else f"/flush_cache still answers HTTP {status} after {deadline_s:.0f} s"


def _json_object(url: str) -> dict[str, Any]:
    try:
        reply = _get(url, TIMEOUT_S, TRIES)
        said = reply.json() if reply.status_code == 200 else {}
    except (requests.RequestException, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _get(url: str, timeout_s: float, tries: int) -> requests.Response:
    """GET; repeated after a lost connection or HTTP 5xx, not after a time-out.

    :raises requests.RequestException: No answer.
    """
    # A connection that is not accepted in time is both.
    broken = tenacity.retry_if_exception_type(requests.ConnectionError) & tenacity.retry_if_not_exception_type(
        requests.Timeout
    )
    failed = broken | tenacity.retry_if_result(lambda reply: reply.status_code >= 500)
    return _retrying(failed, tenacity.stop_after_attempt(tries), PAUSE_S)(_request, "GET", url, timeout_s)


def _retrying(
    retry: tenacity.retry_base, stop: tenacity.stop_after_attempt | tenacity.stop_after_delay, pause_s: float
) -> tenacity.Retrying:
    def last(state: tenacity.RetryCallState) -> requests.Response:
        """The last answer, or the last exception, in place of tenacity's own."""
        assert state.outcome is not None
        reply: requests.Response = state.outcome.result()
        return reply

    return tenacity.Retrying(retry=retry, stop=stop, wait=tenacity.wait_fixed(pause_s), retry_error_callback=last)


def _request(method: str, url: str, timeout_s: float) -> requests.Response:
    """Send one request; no proxy is used for loopback.

    :raises requests.RequestException: No answer.
    """
    with requests.Session() as session:
        session.trust_env = not is_loopback(url)
        return session.request(method, url, timeout=timeout_s)
