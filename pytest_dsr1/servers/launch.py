"""One server's command line, and what a user may type into it."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from typing import TypeAlias

#: Of an argument, as in TOML: True is a flag, False leaves the argument out, a tuple makes one word of each text.
Value: TypeAlias = bool | int | float | str | tuple[str, ...]

#: The address that a server binds to unless told otherwise.
DEFAULT_HOST = "127.0.0.1"
#: How this machine reaches a server that binds to all addresses.
_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}

#: Arguments that the plugin sets itself, each with the option to use instead.
_OURS = {
    "model-path": "--model",
    "model": "--model",
    "port": "--port",
    "tensor-parallel-size": "--tp",
    "tp-size": "--tp",
    "tp": "--tp",
}
_API_KEYS = ("api-key", "admin-api-key")
#: Arguments that the plugin reads, and which therefore must be texts.
_TEXTS = ("host", "served-model-name")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: "token" inside a longer name is no sign of a secret: an inference server counts tokens.
_SECRET_NAME = re.compile(r"(^|-)(key|secret|password|passwd|passphrase|credentials?|(auth|access|hf)-token)$|^token$")
_SECRET_VARIABLE = re.compile(r"(token|key|secret|password|passwd|passphrase|credentials?)$", re.IGNORECASE)
_URL_WITH_LOGIN = re.compile(r"://[^/\s@]+@")
_NO_SECRETS = "command lines are printed and kept with results, so they must not contain secrets"


@dataclass(frozen=True)
class ServerArgument:
    """One `--server-arg`.

    :param name: Without the leading hyphens.
    :param value: None for a flag.
    """

    name: str
    value: str | None = None


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """What the user typed about a launch.

    :param model: `--model`; None: the recipe's.
    :param tp: `--tp`; None: the recipe's.
    :param arguments: `--server-arg`; the last one of a name counts.
    :param environment: `--server-env`; the last one of a name counts.
    """

    model: str | None = None
    port: int = 8888
    tp: int | None = None
    arguments: tuple[ServerArgument, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A server's command line and the variables that its environment has beside ours.

    Points with equal launches share one server. There are no secrets in it: arguments and variables whose names say
    that they are secrets are refused where they are read.

    :param recipe: Name of the recipe.
    :param argv: From the interpreter on.
    :param environment: Sorted by name.
    :param model: The name of the served model in /v1/models.
    """

    recipe: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    model: str
    host: str = DEFAULT_HOST
    port: int

    @property
    def url(self) -> str:
        """Base URL for this machine, without `/v1`."""
        host = _REACHED_AT.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def shell_line(self) -> str:
        """One line for a shell: variables, then the command."""
        return shell_line(self.argv, dict(self.environment))

    def changes_from(self, earlier: Launch) -> str:
        """What differs, as "chunked-prefill-size 196608 -> 32768"; else empty."""
        before, after = earlier._settings(), self._settings()
        return ", ".join(
            f"{name} {before.get(name, 'unset')} -> {after.get(name, 'unset')}"
            for name in dict.fromkeys([*before, *after])
            if before.get(name) != after.get(name)
        )

    def _settings(self) -> dict[str, str]:
        """Everything that equality compares, under the names that a user knows."""
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


def shell_line(argv: tuple[str, ...] | list[str], environment: dict[str, str]) -> str:
    """A command with its variables, quoted for a shell."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " ".join([*variables, shlex.join(argv)])


def argument_words(name: str, value: Value) -> tuple[str, ...]:
    """The words of an argument on a command line; none if it is left out."""
    if isinstance(value, bool):
        return (f"--{name}",) if value else ()
    if isinstance(value, tuple):
        return (f"--{name}", *value)
    return (f"--{name}={value}",)


def parse_server_arg(text: str) -> ServerArgument:
    """Read NAME=VALUE or NAME, with or without two hyphens before it.

    The value begins after the first =.

    :raises ValueError: With the reason; it never quotes a value, which may be a secret.
    """
    name, equals, value = text.removeprefix("--").partition("=")
    argument = ServerArgument(name, value if equals else None)
    if problem := argument_problem(name, True if argument.value is None else argument.value):
        raise ValueError(problem)
    return argument


def parse_server_env(text: str) -> tuple[str, str]:
    """Read NAME=VALUE.

    :raises ValueError: With the reason; it never quotes a value, which may be a secret.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("a variable is written NAME=VALUE")
    if problem := variable_problem(name, value):
        raise ValueError(problem)
    return name, value


def argument_problem(name: str, value: Value) -> str:
    """Why an argument may not be given to a server; empty if it may."""
    if not _NAME.fullmatch(name):
        return (
            "an argument is written NAME=VALUE, or NAME for a flag, in small letters and hyphens: "
            "mem-fraction-static=0.9"
        )
    # argparse accepts the beginning of a name for the name.
    for ours, option in _OURS.items():
        if ours.startswith(name):
            return f"{name} is set by the plugin; use {option}"
    if any(key.startswith(name) for key in _API_KEYS):
        return f"{name}: a server that requires an API key cannot be measured, since requests are sent without one"
    if _SECRET_NAME.search(name):
        return f"{name} is the name of a secret; {_NO_SECRETS}"
    if name in _TEXTS and not (isinstance(value, str) and value):
        return f"{name} needs a value: {name}=…"
    return _value_problem(name, value)


def variable_problem(name: str, value: str) -> str:
    """Why a variable may not be set for a server; empty if it may."""
    if not _VARIABLE.fullmatch(name):
        return "a variable is written NAME=VALUE, its name in letters, digits and underscores"
    if _SECRET_VARIABLE.search(name):
        return f"{name} is the name of a secret; {_NO_SECRETS}; export it instead: the server inherits the environment"
    return _value_problem(name, value)


def _value_problem(name: str, value: Value) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} is {value}, must be a finite number"
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and any(ord(char) < 32 or ord(char) == 127 for char in text):
            return f"the value of {name} has a line break or another control character; write it on one line"
        if isinstance(text, str) and _URL_WITH_LOGIN.search(text):
            return f"the value of {name} is a URL with a login; {_NO_SECRETS}"
    return ""
