"""One server's command line, and what a user may type into it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

#: Of an argument, as in TOML: True is a flag, False leaves the argument out, a list makes one word of each element.
Value: TypeAlias = bool | int | float | str | list[int | float | str]

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


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A server's command line and the variables that its environment has beside ours.

    Points with equal launches share one server. There are no secrets in it: arguments and variables whose names say
    that they are secrets are refused where they are read.

    :param recipe: Name of the recipe.
    :param command: From the interpreter on, without the arguments.
    :param arguments: Name to value, in order; `model-path` and `port` are among them.
    """

    recipe: str
    command: tuple[str, ...]
    arguments: Mapping[str, Value]
    environment: Mapping[str, str]

    @property
    def argv(self) -> tuple[str, ...]:
        """The command with its arguments."""
        return (
            *self.command,
            *(word for name, value in self.arguments.items() for word in argument_words(name, value)),
        )

    @property
    def model(self) -> str:
        """The name of the served model in /v1/models."""
        return str(self.arguments.get("served-model-name", self.arguments["model-path"]))

    @property
    def host(self) -> str:
        """The address that the server binds to."""
        return str(self.arguments.get("host", DEFAULT_HOST))

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return int(str(self.arguments["port"]))

    @property
    def url(self) -> str:
        """Base URL for this machine, without `/v1`."""
        host = _REACHED_AT.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def changes_from(self, earlier: Launch) -> str:
        """What differs from `earlier`, as in "tp-size 4 -> 8"; empty if nothing does."""
        before, after = earlier._settings(), self._settings()
        return ", ".join(
            f"{name} {before.get(name, 'unset')} -> {after.get(name, 'unset')}"
            for name in dict.fromkeys([*before, *after])
            if before.get(name) != after.get(name)
        )

    def _settings(self) -> dict[str, str]:
        arguments = {
            name: "set" if value is True else shlex.join(map(str, value if isinstance(value, list) else [value]))
            for name, value in self.arguments.items()
        }
        return {"recipe": self.recipe, "command": shlex.join(self.command), **arguments, **self.environment}


def shell_line(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """A command with its variables, quoted for a shell."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " ".join([*variables, shlex.join(argv)])


def argument_words(name: str, value: Value) -> tuple[str, ...]:
    """The words of an argument on a command line."""
    if value is True:
        return (f"--{name}",)
    if isinstance(value, list):
        return (f"--{name}", *map(str, value))
    return (f"--{name}={value}",)


def parse_server_arg(text: str) -> tuple[str, str | bool]:
    """Read NAME=VALUE, or NAME for a flag, with or without two hyphens.

    :raises ValueError: With the reason; it never quotes a value, which may be a secret.
    """
    name, equals, value = text.removeprefix("--").partition("=")
    check_argument(name, value if equals else True)
    return name, value if equals else True


def parse_server_env(text: str) -> tuple[str, str]:
    """Read NAME=VALUE.

    :raises ValueError: With the reason; it never quotes a value, which may be a secret.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("a variable is written NAME=VALUE")
    check_variable(name, value)
    return name, value


def check_argument(name: str, value: object) -> None:
    """Refuse what may not be given to a server.

    :raises ValueError: With the reason.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            "an argument is written NAME=VALUE, or NAME for a flag, in small letters and hyphens: "
            "mem-fraction-static=0.9"
        )
    # argparse accepts the beginning of a name for the name.
    for ours, option in _OURS.items():
        if ours.startswith(name):
            raise ValueError(f"{name} is set by the plugin; use {option}")
    if any(key.startswith(name) for key in _API_KEYS):
        raise ValueError(
            f"{name}: a server that requires an API key cannot be measured, since requests are sent without one"
        )
    if _SECRET_NAME.search(name):
        raise ValueError(f"{name} is the name of a secret; {_NO_SECRETS}")
    if name in _TEXTS and value is not False and not (isinstance(value, str) and value):
        raise ValueError(f"{name} needs a value: {name}=…")
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, int | float | str) or (isinstance(value, list) and isinstance(each, bool)):
            raise ValueError(f"Expected texts or numbers, true or false, found {repr(value)[:60]}")
        _check_value(name, each)
    if value == []:
        raise ValueError("Expected a list of length >= 1, found []")


def check_variable(name: str, value: object) -> None:
    """Refuse what may not be set for a server.

    :raises ValueError: With the reason.
    """
    if not _VARIABLE.fullmatch(name):
        raise ValueError("a variable is written NAME=VALUE, its name in letters, digits and underscores")
    if _SECRET_VARIABLE.search(name):
        raise ValueError(
            f"{name} is the name of a secret; {_NO_SECRETS}; export it instead: the server inherits the environment"
        )
    if value is True or not isinstance(value, int | float | str):
        raise ValueError(f"Expected a text or a number, or false to leave it out, found {repr(value)[:60]}")
    _check_value(name, value)


def _check_value(name: str, value: float | str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, must be a finite number")
    if isinstance(value, str) and any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise ValueError(f"the value of {name} has a line break or another control character; write it on one line")
    if isinstance(value, str) and _URL_WITH_LOGIN.search(value):
        raise ValueError(f"the value of {name} is a URL with a login; {_NO_SECRETS}")
