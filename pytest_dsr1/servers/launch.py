"""The command line that a recipe makes for a point, and which points share one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from pytest_dsr1.core.config import Point
from pytest_dsr1.servers.arguments import ServerArgument, Value, render
from pytest_dsr1.servers.recipe import Recipe, RecipeError

#: What a server binds to unless told otherwise.
DEFAULT_HOST = "127.0.0.1"
#: Where a server is reached that binds to all addresses.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """What was typed about a launch.

    :param model: `--model`; None: the recipe's.
    :param tp: `--tp`; None: the recipe's.
    :param arguments: `--server-arg`; of one name, the last counts.
    :param environment: `--server-env`, likewise.
    """

    model: str | None = None
    port: int = 8888
    tp: int | None = None
    arguments: tuple[ServerArgument, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A server's command line and what its environment has beside ours. A server of an equal launch need not restart.

    Neither holds secrets: arguments and variables that are secrets by their names are refused where they are read.

    :param recipe: Its name.
    :param argv: From the interpreter on.
    :param environment: Sorted by name.
    :param model: How /v1/models will name what is served.
    """

    recipe: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    model: str
    host: str = DEFAULT_HOST
    port: int

    @property
    def url(self) -> str:
        """Where this machine reaches it, without `/v1`."""
        host = _EVERYWHERE.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def words(self) -> str:
        """One line as a shell takes it: variables, then the command."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment]
        return " ".join([*variables, shlex.join(self.argv)])

    def changes(self, other: Launch) -> str:
        """What is not as in `other`, the earlier one: "chunked-prefill-size 196608 -> 32768"; empty if all is."""
        before, after = other._settings(), self._settings()
        return ", ".join(
            f"{name} {before.get(name, 'unset')} -> {after.get(name, 'unset')}"
            for name in dict.fromkeys([*before, *after])
            if before.get(name) != after.get(name)
        )

    def _settings(self) -> dict[str, str]:
        """Everything that equality looks at, by the name under which a user knows it."""
        command: list[str] = []
        arguments: dict[str, list[str]] = {}
        words = command
        for word in self.argv:
            if word.startswith("--"):
                name, equals, value = word.removeprefix("--").partition("=")
                words = arguments.setdefault(name, [])
                words += [value] if equals else []
            else:
                words.append(word)
        return {
            "recipe": self.recipe,
            "command": shlex.join(command),
            "model": self.model,
            **{name: shlex.join(values) or "set" for name, values in arguments.items()},
            **dict(self.environment),
        }


def make_launch(recipe: Recipe, point: Point, options: LaunchOptions, python: str) -> Launch:
    """The launch that measures `point`: what is typed goes before rules, rules go before the rest of the recipe.

    :param python: The interpreter that has SGLang.
    :raises RecipeError: Neither recipe nor options name a model.
    """
    model = options.model or recipe.model
    if model is None:
        raise RecipeError(f"recipe {recipe.name} serves no model of its own; it needs --model NAME|PATH")
    arguments, variables = recipe.at(point)
    arguments |= {typed.name: True if typed.value is None else typed.value for typed in options.arguments}
    variables |= options.environment
    # Texts where they are read, or False where a recipe leaves out what it extends.
    host = str(arguments.pop("host", False) or DEFAULT_HOST)
    served = str(arguments.get("served-model-name", False) or model)
    ours: dict[str, Value] = {
        "model-path": model,
        "host": host,
        "port": options.port,
        "tensor-parallel-size": options.tp if options.tp is not None else recipe.tp,
    }
    return Launch(
        recipe=recipe.name,
        argv=(
            *(word.replace("{python}", python) for word in recipe.command),
            *(word for name, value in {**ours, **arguments}.items() for word in render(name, value)),
        ),
        environment=tuple(sorted((name, value) for name, value in variables.items() if value is not None)),
        model=served,
        host=host,
        port=options.port,
    )


def launches(
    recipe: Recipe, points: Sequence[Point], options: LaunchOptions, python: str
) -> tuple[tuple[Launch, tuple[Point, ...]], ...]:
    """The launches of a sweep in its order, each with the points that are measured on it, one after another.

    :raises RecipeError: As `make_launch` does.
    """
    runs = groupby(points, key=lambda point: make_launch(recipe, point, options, python))
    return tuple((launch, tuple(group)) for launch, group in runs)
