"""Who serves: `--server-url`, or what `--engine` finds here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pytest_dsr1.core.config import DEFAULT_MODEL, Engine, Point, SweepConfig
from pytest_dsr1.servers import Reporter, Server, ServerError
from pytest_dsr1.servers.external import ExternalServer, healthy_models
from pytest_dsr1.servers.launch import Launch, parse_server_arg, parse_server_env, shell_line
from pytest_dsr1.servers.launched import LaunchedServer, require_port
from pytest_dsr1.servers.machine import find_interpreter, visible_gpus
from pytest_dsr1.servers.process import free_port, holder_of, runs_with
from pytest_dsr1.servers.recipe import REFERENCE, Recipe, load_recipe, recipe_for

#: Where this package is imported from: a checkout need not be installed.
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """How a server would be launched here.

    :param recipe: With what the user typed.
    :param python: The interpreter that stands for {python} in the recipe's command.
    :param version: Of SGLang; empty where it is unknown.
    :param missing: Which Pythons were asked for SGLang, and what they said; empty if one has it or none is needed.
    """

    recipe: Recipe
    port: int
    python: str
    gpus: tuple[str, ...] = ()
    version: str = ""
    missing: str = ""

    def launch_for(self, point: Point) -> Launch:
        """The launch for a point.

        :raises ServerError: The recipe names no model.
        """
        return self.recipe.launch_at(point, self.port, self.python)

    def launches(self, points: Sequence[Point]) -> tuple[tuple[Launch, tuple[Point, ...]], ...]:
        """The launches of a sweep in order, each with its consecutive points."""
        return tuple((launch, tuple(group)) for launch, group in groupby(points, key=self.launch_for))


@dataclass(frozen=True)
class Choice:
    """The servers of a session: one, or several external ones.

    :param why: Which one, and why, for the header.
    :param running: Whether they run already, so that they can be asked before anything else is done.
    :param is_reference: Whether it is known to be the embedded engine before it is asked.
    :param plan: How SGLang will be launched; None if it will not.
    """

    servers: tuple[Server, ...]
    why: str
    running: bool = False
    is_reference: bool = False
    plan: LaunchPlan | None = None


def plan_launch(config: SweepConfig, environ: Mapping[str, str]) -> LaunchPlan:
    """Find recipe and interpreter.

    :raises ServerError: The recipe cannot be read, or none fits the GPUs.
    """
    if config.engine is Engine.REFERENCE:
        return reference_plan()
    wanted = config.launch
    if wanted.recipe == REFERENCE:
        raise ServerError("--recipe reference: the embedded engine is started by --engine reference")
    gpus = visible_gpus(environ)
    recipe = load_recipe(wanted.recipe) if wanted.recipe is not None else recipe_for(gpus, config.model)
    python, version, missing = "python3", "", ""
    if any("{python}" in word for word in recipe.command):
        try:
            python, version = find_interpreter(wanted.sglang_python, environ)
        except ServerError as error:
            missing = str(error)
    typed = recipe.with_typed(
        model=config.model,
        tp=config.tp,
        arguments=dict(map(parse_server_arg, wanted.server_args)),
        environment=dict(map(parse_server_env, wanted.server_env)),
    )
    return LaunchPlan(recipe=typed, port=config.port, python=python, gpus=gpus, version=version, missing=missing)


def reference_plan(weights: Path | None = None) -> LaunchPlan:
    """How the embedded engine is launched: our own Python, and a free port.

    :param weights: Hugging Face folder to serve; None: the packaged model.
    """
    python_path = os.pathsep.join(filter(None, (str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH"))))
    recipe = load_recipe(REFERENCE).with_typed(
        model=None if weights is None else str(weights.resolve()), environment={"PYTHONPATH": python_path}
    )
    return LaunchPlan(recipe=recipe, port=free_port(), python=sys.executable)


def print_launch(config: SweepConfig, points: Sequence[Point], say: Callable[[str], None]) -> str:
    """Print each command line with the points that it serves (--print-launch).

    :return: Why nothing could be printed; empty if it was.
    """
    try:
        plan = plan_launch(config, os.environ)
        launches = plan.launches(points)
    except ServerError as error:
        return str(error)
    if plan.missing and config.launch.sglang_python is not None:
        return plan.missing
    say(f"# recipe {plan.recipe.name}: {plan.recipe.summary}")
    if plan.missing:
        say(f"# {plan.missing}")
    for launch, served in launches:
        say(f"# for {', '.join(point.id for point in served)}")
        say(shell_line(launch.argv, launch.environment))
    return ""


def choose(config: SweepConfig, environ: Mapping[str, str], logs: Path, reporter: Reporter) -> Choice:
    """Find who serves.

    :param logs: Folder for the output of servers that we start.
    :raises ServerError: The one that was asked for cannot be had, or cannot be launched.
    """
    if config.server_urls:
        servers = tuple(
            ExternalServer(url, config.model, not config.model_from_environment, config.tp, config.flush_cache)
            for url in config.server_urls
        )
        return Choice(servers, f"{', '.join(config.server_urls)} (--server-url)", running=True)
    if config.engine is Engine.REFERENCE:
        return _reference(config, logs, reporter, "the embedded reference engine (--engine reference)")
    if config.engine is Engine.SGLANG:
        plan = plan_launch(config, environ)
        if plan.missing:
            raise ServerError(f"--engine sglang: {plan.missing}")
        return _kept(config, plan) or _launched(config, plan, logs, reporter, "--engine sglang")
    return _first_of_auto(config, environ, logs, reporter)


def _first_of_auto(config: SweepConfig, environ: Mapping[str, str], logs: Path, reporter: Reporter) -> Choice:
    """A running server on --port, else SGLang, else the embedded engine."""
    wanted, plan, problem, missing = config.launch, None, None, "no GPU is visible for SGLang"
    # Who types a recipe wants a launch, whatever GPUs are seen.
    if wanted.recipe is not None or visible_gpus(environ):
        try:
            plan = plan_launch(config, environ)
            missing = plan.missing
        except ServerError as error:
            problem = error
    if plan is not None and (kept := _kept(config, plan)):
        return kept
    # The names of the models that are ours: the recipe's is among them.
    names = [config.model if config.model is not None else DEFAULT_MODEL]
    if plan is not None:
        names.append(plan.launch_for(config.launch_points[0]).model)
    url = f"http://127.0.0.1:{config.port}"
    models = healthy_models(url)
    if found := next((name for name in names if models and name in models), None):
        if wanted.typed:
            raise ServerError(
                f"{wanted.typed[0]} is for launching SGLang, but {url} runs already and serves {found}; "
                f"stop it, choose another --port, or drop {wanted.typed[0]}"
            )
        return _running(config, url, found, f"it runs already and serves {found}")
    absence = f"no server answers at {url}"
    if models is not None:
        absence = f"the server at {url} is not healthy or does not serve {' or '.join(dict.fromkeys(names))}"
    if plan is not None and not missing:
        why = f"{absence}, and there is a GPU" if plan.gpus else "--recipe was typed"
        return _launched(config, plan, logs, reporter, why)
    if problem is not None:
        # Without SGLang no recipe is needed: whatever GPU a laptop has, the embedded engine serves.
        if wanted.recipe is not None:
            raise problem
        try:
            find_interpreter(wanted.sglang_python, environ)
        except ServerError as error:
            missing = str(error)
        else:
            raise problem
    if wanted.typed:
        raise ServerError(f"{wanted.typed[0]} is for launching SGLang, but {missing}; see --engine sglang")
    if config.model is not None and not config.model_from_environment:
        # The embedded engine has a model of its own, whose figures nobody asked for.
        raise ServerError(
            f"--model {config.model} was typed, but {absence}, and {missing}; "
            "start a server, name one with --server-url, or drop --model"
        )
    return _reference(config, logs, reporter, f"the embedded reference engine, since {absence}, and {missing}")


def _kept(config: SweepConfig, plan: LaunchPlan) -> Choice | None:
    """The server on --port, if it was launched as this session would launch it."""
    (launch, _), *others = plan.launches(config.launch_points)
    holder = holder_of(launch.port)
    if others or holder is None or not runs_with(holder.pid, launch.argv, launch.environment):
        return None
    if launch.model not in (healthy_models(launch.url) or ()):
        return None
    return _running(
        config, launch.url, launch.model, f"process {holder.pid}, launched as recipe {plan.recipe.name} says"
    )


def _running(config: SweepConfig, url: str, model: str, why: str) -> Choice:
    server = ExternalServer(url, model, tp=config.tp, flush=config.flush_cache)
    return Choice((server,), f"{url} ({why})", running=True)


def _launched(config: SweepConfig, plan: LaunchPlan, logs: Path, reporter: Reporter, why: str) -> Choice:
    recipe, visible = plan.recipe, len(plan.gpus)
    if plan.gpus and recipe.tp > visible:
        # SGLang would find it out after minutes.
        source = "--tp" if config.tp is not None else f"recipe {recipe.name}"
        raise ServerError(
            f"{source} needs {recipe.tp} GPUs and {visible} are visible; type --tp {visible}, or another model"
        )
    # Checked now, not at the first point.
    require_port(plan.launch_for(config.launch_points[0]))
    wanted = config.launch
    server = LaunchedServer("SGLang", plan.launch_for, logs, reporter, timeout_s=wanted.timeout_s, keep=wanted.keep)
    seen = f"{visible} x {plan.gpus[0]}" if plan.gpus else "no GPU seen"
    name = f"SGLang {plan.version}".rstrip()
    why = f"{name}, launched with {recipe.model} by recipe {recipe.name} ({seen}); {why}"
    return Choice((server,), why, plan=plan)


def _reference(config: SweepConfig, logs: Path, reporter: Reporter, why: str) -> Choice:
    launch_for = reference_plan().launch_for
    server = LaunchedServer("the embedded engine", launch_for, logs, reporter, timeout_s=config.launch.timeout_s)
    return Choice((server,), why, is_reference=True)
