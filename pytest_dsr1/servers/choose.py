"""Who serves: `--server-url`, or what `--engine` finds here."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pytest_dsr1.core.config import DEFAULT_MODEL, Engine, Point, SweepConfig
from pytest_dsr1.servers import Reporter, Server, ServerError, probe
from pytest_dsr1.servers.external import ExternalServer
from pytest_dsr1.servers.launch import Launch, LaunchOptions, parse_server_arg, parse_server_env
from pytest_dsr1.servers.launched import LaunchedServer, require_port
from pytest_dsr1.servers.machine import Interpreter, InterpreterNotFoundError, find_interpreter, visible_gpus
from pytest_dsr1.servers.ports import free_port, holder_of, runs_with
from pytest_dsr1.servers.recipe import REFERENCE, Recipe, RecipeError, load_recipe, recipe_for

#: How long a server on --port may take to answer.
PROBE_TIMEOUT_S = 2.0
#: Where this package is imported from: a checkout need not be installed.
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """How a server would be launched here.

    :param interpreter: None where the recipe's command needs none, or no Python has SGLang.
    :param missing: Which Pythons were asked for SGLang, and what they said; empty if one has it or none is needed.
    """

    gpus: tuple[str, ...]
    recipe: Recipe
    options: LaunchOptions
    interpreter: Interpreter | None
    missing: str = ""

    def launch_for(self, point: Point) -> Launch:
        """The launch for a point.

        :raises RecipeError: The recipe cannot make one.
        """
        return self.recipe.launch_at(point, self.options, self._python)

    def launches(self, points: Sequence[Point]) -> tuple[tuple[Launch, tuple[Point, ...]], ...]:
        """The launches of a sweep in order, each with its consecutive points."""
        return tuple((launch, tuple(group)) for launch, group in groupby(points, key=self.launch_for))

    @property
    def why(self) -> str:
        """What is launched, and why, for the header."""
        seen = f"{len(self.gpus)} x {self.gpus[0]}" if self.gpus else "no GPU seen"
        version = f" {self.interpreter.version}" if self.interpreter is not None else ""
        model = self.options.model or self.recipe.model
        return f"SGLang{version}, launched with {model} by recipe {self.recipe.name} ({seen})"

    @property
    def gpu_problem(self) -> str:
        """That more GPUs are needed than are visible; empty if there are enough."""
        tp = self.options.tp if self.options.tp is not None else self.recipe.tp
        if not self.gpus or tp <= len(self.gpus):
            return ""
        source = "--tp" if self.options.tp is not None else f"recipe {self.recipe.name}"
        return (
            f"{source} needs {tp} GPUs and {len(self.gpus)} are visible; type --tp {len(self.gpus)}, or another model"
        )

    @property
    def _python(self) -> str:
        return self.interpreter.path if self.interpreter is not None else "python3"


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
    running: bool
    is_reference: bool = False
    plan: LaunchPlan | None = None


def plan_launch(config: SweepConfig, environ: Mapping[str, str]) -> LaunchPlan:
    """Find recipe and interpreter.

    :raises RecipeError: The recipe cannot be read, or none fits the GPUs.
    """
    if config.engine is Engine.REFERENCE:
        return reference_plan()
    wanted = config.launch
    if wanted.recipe == REFERENCE:
        raise RecipeError("--recipe reference: the embedded engine is started by --engine reference")
    options = LaunchOptions(
        model=config.model,
        port=config.port,
        tp=config.tp,
        arguments=tuple(map(parse_server_arg, wanted.server_args)),
        environment=tuple(map(parse_server_env, wanted.server_env)),
    )
    gpus = visible_gpus(environ)
    recipe = load_recipe(wanted.recipe) if wanted.recipe is not None else recipe_for(gpus, config.model)
    needs_python = any("{python}" in word for word in recipe.command)
    interpreter, missing = _find_python(config, environ) if needs_python else (None, "")
    return LaunchPlan(gpus=gpus, recipe=recipe, options=options, interpreter=interpreter, missing=missing)


def _find_python(config: SweepConfig, environ: Mapping[str, str]) -> tuple[Interpreter | None, str]:
    """A Python that has SGLang, or why there is none."""
    try:
        return find_interpreter(config.launch.sglang_python, environ), ""
    except InterpreterNotFoundError as error:
        return None, str(error)


def print_launch(config: SweepConfig, points: Sequence[Point], say: Callable[[str], None]) -> str:
    """Print every command line of the sweep and its points (--print-launch).

    :return: Why nothing could be printed; empty if it was.
    """
    try:
        plan = plan_launch(config, os.environ)
        launches = plan.launches(points)
    except RecipeError as error:
        return str(error)
    if plan.missing and config.launch.sglang_python is not None:
        return plan.missing
    say(f"# recipe {plan.recipe.name}: {plan.recipe.summary}")
    if plan.missing:
        say(f"# {plan.missing}")
    for launch, served in launches:
        say(f"# for {', '.join(point.id for point in served)}")
        say(launch.shell_line)
    return ""


def choose(config: SweepConfig, environ: Mapping[str, str], logs: Path, reporter: Reporter) -> Choice:
    """Find who serves.

    :param logs: Folder for the output of servers that we start.
    :raises ServerError: The one that was asked for cannot be had.
    :raises RecipeError: SGLang is to be launched, and no recipe says how.
    """
    if config.server_urls:
        servers = tuple(_external(config, url) for url in config.server_urls)
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
    plan, problem = None, None
    # Who types a recipe wants a launch, whatever GPUs are seen.
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
                f"{typed[0]} is for launching SGLang, but {url} runs already and serves {found}; "
                f"stop it, choose another --port, or drop {typed[0]}"
            )
        external = ExternalServer(url, found, tp=config.tp, flush=config.flush_cache)
        return Choice((external,), f"{url} (it runs already and serves {found})", running=True)
    absence = _absence(found, url, models)
    if plan is not None and not plan.missing:
        why = f"{absence}, and there is a GPU" if plan.gpus else "--recipe was typed"
        return _launched(config, plan, logs, reporter, why)
    if problem is not None:
        # Without SGLang no recipe is needed: whatever GPU a laptop has, the embedded engine serves.
        _, missing = _find_python(config, environ)
        if not missing or config.launch.recipe is not None:
            raise problem
    else:
        missing = plan.missing if plan is not None else "no GPU is visible for SGLang"
    if typed := config.launch.typed:
        raise ServerError(f"{typed[0]} is for launching SGLang, but {missing}; see --engine sglang")
    if config.model is not None and not config.model_from_environment:
        # The embedded engine has a model of its own, whose figures nobody asked for.
        raise ServerError(
            f"--model {config.model} was typed, but {absence}, and {missing}; "
            "start a server, name one with --server-url, or drop --model"
        )
    return _reference(config, logs, reporter, f"the embedded reference engine, since {absence}, and {missing}")


def _kept(config: SweepConfig, plan: LaunchPlan) -> Choice | None:
    """The server on --port, if it was launched as this session would launch it."""
    launches = plan.launches(config.launch_points)
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
    """The models of which a running server must serve one to be used."""
    names = [config.model if config.model is not None else DEFAULT_MODEL]
    if plan is not None:
        names.append(plan.launch_for(config.launch_points[0]).model)
    return tuple(dict.fromkeys(names))


def _serves(url: str, models: tuple[str, ...]) -> str | None:
    """Which of `models` a healthy server lists; empty if none, None if no answer."""
    try:
        served = probe.served_models(url, PROBE_TIMEOUT_S)
    except ServerError:
        return None
    named = next((model for model in models if model in served), "")
    return named if named and probe.is_healthy(url, PROBE_TIMEOUT_S) else ""


def _absence(found: str | None, url: str, models: tuple[str, ...]) -> str:
    if found is None:
        return f"no server answers at {url}"
    return f"the server at {url} is not healthy or does not serve {' or '.join(models)}"


def _launched(config: SweepConfig, plan: LaunchPlan, logs: Path, reporter: Reporter, why: str) -> Choice:
    if problem := plan.gpu_problem:
        raise ServerError(problem)
    # Checked now, not at the first point.
    require_port(plan.launch_for(config.launch_points[0]))
    wanted = config.launch
    server = LaunchedServer("SGLang", plan.launch_for, logs, reporter, timeout_s=wanted.timeout_s, keep=wanted.keep)
    return Choice((server,), f"{plan.why}; {why}", running=False, plan=plan)


def _external(config: SweepConfig, url: str) -> ExternalServer:
    return ExternalServer(
        url, config.model, insist=not config.model_from_environment, tp=config.tp, flush=config.flush_cache
    )


def _reference(config: SweepConfig, logs: Path, reporter: Reporter, why: str) -> Choice:
    server = LaunchedServer(
        "the embedded engine", reference_plan().launch_for, logs, reporter, timeout_s=config.launch.timeout_s
    )
    return Choice((server,), why, running=False, is_reference=True)


def reference_plan(weights: Path | None = None) -> LaunchPlan:
    """How the embedded engine is launched: with our own Python, on a free port.

    :param weights: Hugging Face folder to serve; None: the packaged model.
    """
    others = os.environ.get("PYTHONPATH")
    python_path = os.pathsep.join([str(_PACKAGE_PARENT), *([others] if others else [])])
    return LaunchPlan(
        gpus=(),
        recipe=load_recipe(REFERENCE),
        options=LaunchOptions(
            model=None if weights is None else str(weights.resolve()),
            port=free_port(),
            environment=(("PYTHONPATH", python_path),),
        ),
        interpreter=Interpreter(sys.executable, ""),
    )
