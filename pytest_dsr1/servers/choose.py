"""Who serves: `--server-url`, or the order of `--engine auto`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_dsr1.core.config import DEFAULT_MODEL, Engine, SweepConfig
from pytest_dsr1.servers import Server, ServerError, Voice, probe
from pytest_dsr1.servers.accelerator import visible_gpus
from pytest_dsr1.servers.external import ExternalServer
from pytest_dsr1.servers.interpreter import InterpreterNotFoundError, find_interpreter
from pytest_dsr1.servers.plan import LaunchPlan, plan_launch
from pytest_dsr1.servers.ports import holder_of, runs_with
from pytest_dsr1.servers.recipe import RecipeError
from pytest_dsr1.servers.sglang import SglangServer, new_log, require_port

#: Seconds that a server on --port gets to say that it is there.
PROBE_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Choice:
    """The server of a session, or several that run already.

    :param why: For the header: which one, and why.
    :param running: Whether it answers already, so that it can be asked before anything else is done.
    :param is_reference: Whether it is known to be the embedded engine, before it is asked.
    :param plan: How it will be launched, if it will.
    """

    servers: tuple[Server, ...]
    why: str
    running: bool
    is_reference: bool = False
    plan: LaunchPlan | None = None


def choose(config: SweepConfig, environ: Mapping[str, str], logs: Path, voice: Voice) -> Choice:
    """Find who serves.

    :param logs: Where a server that we start writes its output.
    :raises ServerError: The one that was asked for cannot be had.
    :raises RecipeError: SGLang is to be launched, and no recipe says how.
    """
    if config.server_urls:
        servers = tuple(_external(config, url) for url in config.server_urls)
        return Choice(servers, f"{', '.join(config.server_urls)} (--server-url)", running=True)
    if config.engine is Engine.REFERENCE:
        return _reference(logs, "the embedded reference engine (--engine reference)")
    if config.engine is Engine.SGLANG:
        plan = plan_launch(config, environ)
        if plan.missing:
            raise ServerError(f"--engine sglang: {plan.missing}")
        return _kept(config, plan) or _launched(config, plan, logs, voice, "--engine sglang")
    return _first_of_auto(config, environ, logs, voice)


def _first_of_auto(config: SweepConfig, environ: Mapping[str, str], logs: Path, voice: Voice) -> Choice:
    """A healthy server on --port that names our model; SGLang; the embedded engine."""
    plan, problem = None, None
    # A recipe that was typed is a wish to launch, whatever is seen.
    if config.launch.recipe is not None or visible_gpus(environ):
        try:
            plan = plan_launch(config, environ)
        except RecipeError as error:
            problem = error
    if plan is not None and (kept := _kept(config, plan)):
        return kept
    models = _wanted(config, plan)
    url = f"http://127.0.0.1:{config.port}"
    found = _serves(url, models)
    if found:
        if typed := config.launch.typed:
            raise ServerError(
                f"{typed[0]} says how SGLang is launched, but {url} runs already and serves {found}; "
                f"stop it, choose another --port, or drop {typed[0]}"
            )
        external = ExternalServer(url, found, tp=config.tp, flush=config.flush_cache)
        return Choice((external,), f"{url} (it runs already and serves {found})", running=True)
    if plan is not None and not plan.missing:
        why = f"{_absence(found, url, models)}, and there is an accelerator" if plan.gpus else "--recipe was typed"
        return _launched(config, plan, logs, voice, why)
    missing = plan.missing if plan is not None else "no accelerator is visible for SGLang"
    if problem is not None:
        # Without SGLang no recipe is wanted: whatever GPU a laptop has, the embedded engine serves.
        missing = _no_interpreter(config, environ)
        if not missing or config.launch.recipe is not None:
            raise problem
    if typed := config.launch.typed:
        raise ServerError(f"{typed[0]} says how SGLang is launched, but {missing}; see --engine sglang")
    if config.model is not None and not config.model_from_environment:
        # The embedded engine has a model of its own, whose figures nobody asked for.
        raise ServerError(
            f"--model {config.model} was typed, but {_absence(found, url, models)}, and {missing}; "
            "start a server, name one with --server-url, or drop --model"
        )
    return _reference(logs, f"the embedded reference engine, since {_absence(found, url, models)}, and {missing}")


def _no_interpreter(config: SweepConfig, environ: Mapping[str, str]) -> str:
    try:
        find_interpreter(config.launch.sglang_python, environ)
    except InterpreterNotFoundError as error:
        return str(error)
    return ""


def _kept(config: SweepConfig, plan: LaunchPlan) -> Choice | None:
    """The server on --port, if it is the one that would be launched for every point: an earlier session kept it."""
    launches = plan.launches(config.points)
    launch = launches[0][0]
    holder = holder_of(launch.port)
    if len(launches) > 1 or holder is None or not runs_with(holder.pid, launch.argv, dict(launch.environment)):
        return None
    if not _serves(launch.url, (launch.model,)):
        return None
    external = ExternalServer(launch.url, launch.model, tp=config.tp, flush=config.flush_cache)
    return Choice(
        (external,), f"{launch.url} (process {holder.pid}, launched as recipe {plan.recipe.name} says)", running=True
    )


def _wanted(config: SweepConfig, plan: LaunchPlan | None) -> tuple[str, ...]:
    """Names of the model under which a running server is ours; that of the recipe among them."""
    names = [config.model if config.model is not None else DEFAULT_MODEL]
    if plan is not None:
        names.append(plan.launch_for(config.points[0]).model)
    return tuple(dict.fromkeys(names))


def _serves(url: str, models: tuple[str, ...]) -> str | None:
    """Which of `models` a healthy server at `url` names; empty if none, None if nothing answers."""
    try:
        served = probe.served_models(url, PROBE_TIMEOUT_S)
    except ServerError:
        return None
    named = next((model for model in models if model in served), "")
    return named if named and probe.is_healthy(url, PROBE_TIMEOUT_S) else ""


def _absence(found: str | None, url: str, models: tuple[str, ...]) -> str:
    if found is None:
        return f"no server answers at {url}"
    return f"the server at {url} is unhealthy or not {' or '.join(models)}"


def _launched(config: SweepConfig, plan: LaunchPlan, logs: Path, voice: Voice, why: str) -> Choice:
    if problem := plan.gpu_problem:
        raise ServerError(problem)
    # What would fail at the first point fails now.
    require_port(plan.launch_for(config.points[0]))
    wanted = config.launch
    server = SglangServer(plan.launch_for, logs, voice, timeout_s=wanted.timeout_s, keep=wanted.keep)
    return Choice((server,), f"{plan.why}; {why}", running=False, plan=plan)


def _external(config: SweepConfig, url: str) -> ExternalServer:
    return ExternalServer(
        url, config.model, insist=not config.model_from_environment, tp=config.tp, flush=config.flush_cache
    )


def _reference(logs: Path, why: str) -> Choice:
    # Imported here: the engine's launcher is of no use to a sweep on somebody's server.
    from pytest_dsr1.servers.reference import ReferenceServer

    server = ReferenceServer(new_log(logs, str(os.getpid())))
    return Choice((server,), why, running=False, is_reference=True)
