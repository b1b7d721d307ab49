"""Who serves: `--server-url`, or the order of `--engine auto`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_dsr1.core.config import DEFAULT_MODEL, Engine, SweepConfig
from pytest_dsr1.servers import Server, ServerError, probe
from pytest_dsr1.servers.external import ExternalServer

#: Seconds that a server on --port gets to say that it is there.
PROBE_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Choice:
    """The server of a session.

    :param why: For the header: which one, and why.
    :param running: Whether it answers already, so that it can be asked before anything else is done.
    :param is_reference: Whether it is known to be the embedded engine, before it is asked.
    """

    server: Server
    why: str
    running: bool
    is_reference: bool = False


def choose(config: SweepConfig, log: Path) -> Choice:
    """Find who serves.

    :param log: Where a server that we start writes its output.
    """
    if config.server_url is not None:
        return Choice(_external(config, config.server_url), f"{config.server_url} (--server-url)", running=True)
    if config.engine is Engine.REFERENCE:
        return Choice(
            _reference(log), "the embedded reference engine (--engine reference)", running=False, is_reference=True
        )
    wanted = config.model or DEFAULT_MODEL
    url = f"http://127.0.0.1:{config.port}"
    if found := _serves(url, wanted):
        return Choice(
            ExternalServer(url, wanted, tp=config.tp, flush=config.flush_cache),
            f"{url} (it runs already and serves {wanted})",
            running=True,
        )
    why = f"the embedded reference engine, since {_reason(found, url, wanted)}, and launching SGLang is not built yet"
    return Choice(_reference(log), why, running=False, is_reference=True)


def _serves(url: str, model: str) -> bool | None:
    """Whether a healthy server at `url` names `model`; None if nothing answers."""
    try:
        models = probe.served_models(url, PROBE_TIMEOUT_S)
    except ServerError:
        return None
    return model in models and probe.is_healthy(url, PROBE_TIMEOUT_S)


def _reason(found: bool | None, url: str, wanted: str) -> str:
    return f"no server answers at {url}" if found is None else f"the server at {url} is unhealthy or not {wanted}"


def _external(config: SweepConfig, url: str) -> ExternalServer:
    return ExternalServer(
        url, config.model, insist=not config.model_from_environment, tp=config.tp, flush=config.flush_cache
    )


def _reference(log: Path) -> Server:
    # Imported here: the engine's launcher is of no use to a sweep on somebody's server.
    from pytest_dsr1.servers.reference import ReferenceServer

    return ReferenceServer(log)
