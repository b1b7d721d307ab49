"""How SGLang would be launched here: which recipe, which Python, which command line for which point."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pytest_dsr1.core.config import Point, SweepConfig
from pytest_dsr1.servers.accelerator import visible_gpus
from pytest_dsr1.servers.arguments import parse_server_arg, parse_server_env
from pytest_dsr1.servers.interpreter import Interpreter, InterpreterNotFoundError, find_interpreter
from pytest_dsr1.servers.launch import Launch, LaunchOptions, launches, make_launch
from pytest_dsr1.servers.recipe import Recipe, RecipeError, load_recipe, recipe_for


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """Everything that a command line is made of.

    :param interpreter: None where the recipe needs none, or none has SGLang.
    :param missing: Which Pythons were asked for SGLang, and what they said; empty if one has it or none is needed.
    """

    gpus: tuple[str, ...]
    recipe: Recipe
    options: LaunchOptions
    interpreter: Interpreter | None
    missing: str = ""

    def launch_for(self, point: Point) -> Launch:
        """The command line for a point.

        :raises RecipeError: The recipe cannot make one.
        """
        return make_launch(self.recipe, point, self.options, self._python)

    def launches(self, points: Sequence[Point]) -> tuple[tuple[Launch, tuple[Point, ...]], ...]:
        """Each command line, with the points in a row that it serves."""
        return launches(self.recipe, points, self.options, self._python)

    @property
    def why(self) -> str:
        """For the header: what is launched, and why this."""
        seen = f"{len(self.gpus)} x {self.gpus[0]}" if self.gpus else "no GPU seen"
        version = f" {self.interpreter.version}" if self.interpreter is not None else ""
        model = self.options.model or self.recipe.model
        return f"SGLang{version}, launched with {model} by recipe {self.recipe.name} ({seen})"

    @property
    def gpu_problem(self) -> str:
        """What SGLang would find after minutes: fewer GPUs than it is to use; empty if there are enough."""
        tp = self.options.tp if self.options.tp is not None else self.recipe.tp
        if not self.gpus or tp <= len(self.gpus):
            return ""
        source = "--tp" if self.options.tp is not None else f"recipe {self.recipe.name}"
        return (
            f"{source} wants {tp} GPUs and {len(self.gpus)} are visible; type --tp {len(self.gpus)}, or another model"
        )

    @property
    def _python(self) -> str:
        return self.interpreter.path if self.interpreter is not None else "python3"


def plan_launch(config: SweepConfig, environ: Mapping[str, str]) -> LaunchPlan:
    """Find recipe and interpreter.

    :raises RecipeError: The recipe cannot be read, or none fits the GPUs.
    """
    gpus = visible_gpus(environ)
    wanted = config.launch
    recipe = load_recipe(wanted.recipe) if wanted.recipe is not None else recipe_for(gpus, config.model)
    interpreter, missing = None, ""
    # A recipe that names the whole command has its own.
    if any("{python}" in word for word in recipe.command):
        try:
            interpreter = find_interpreter(wanted.sglang_python, environ)
        except InterpreterNotFoundError as error:
            missing = str(error)
    options = LaunchOptions(
        model=config.model,
        port=config.port,
        tp=config.tp,
        arguments=tuple(map(parse_server_arg, wanted.server_args)),
        environment=tuple(map(parse_server_env, wanted.server_env)),
    )
    return LaunchPlan(gpus=gpus, recipe=recipe, options=options, interpreter=interpreter, missing=missing)


def print_launch(config: SweepConfig, points: Sequence[Point], say: Callable[[str], None]) -> str:
    """What --print-launch shows: every command line of the sweep, and what it is for.

    :return: Why nothing could be shown; empty if it was.
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
        say(launch.words)
    return ""
