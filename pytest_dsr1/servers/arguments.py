"""One argument or one variable of a server: how it is typed, how it is rendered, and which are refused."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TypeAlias

#: As in TOML: True is a flag, False one that is left out, several texts follow their argument as words of their own.
Value: TypeAlias = bool | int | float | str | tuple[str, ...]

#: What the command line is given by the sweep itself, and the option that says it.
_OURS = {
    "model-path": "--model",
    "model": "--model",
    "port": "--port",
    "tensor-parallel-size": "--tp",
    "tp-size": "--tp",
    "tp": "--tp",
}
_API_KEYS = ("api-key", "admin-api-key")
#: Arguments that we read ourselves, and so need to be texts.
_TEXTS = ("host", "served-model-name")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: "token" by itself is no sign of a secret here: an inference server counts tokens.
_SECRET_NAME = re.compile(r"(^|-)(key|secret|password|passwd|passphrase|credentials?|(auth|access|hf)-token)$|^token$")
_SECRET_VARIABLE = re.compile(r"(token|key|secret|password|passwd|passphrase|credentials?)$", re.IGNORECASE)
_URL_WITH_LOGIN = re.compile(r"://[^/\s@]+@")
_EXPORT = "a command line is printed and kept, so no secret may stand in it"


@dataclass(frozen=True)
class ServerArgument:
    """One typed argument, as SGLang's command line knows it.

    :param name: Without the leading hyphens.
    :param value: None for a flag.
    """

    name: str
    value: str | None = None


def parse_server_arg(text: str) -> ServerArgument:
    """Read NAME=VALUE or NAME, with or without its two hyphens; all after the first = is the value.

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
            "an argument is written NAME=VALUE, or NAME where it is a flag, "
            "in small letters and hyphens: mem-fraction-static=0.9"
        )
    # argparse takes the beginning of a name for the name.
    for ours, option in _OURS.items():
        if ours.startswith(name):
            return f"{name} is the sweep's own; use {option}"
    if any(key.startswith(name) for key in _API_KEYS):
        return f"{name}: a server that wants a key cannot be measured, since no key is sent with a request"
    if _SECRET_NAME.search(name):
        return f"{name} is a secret by its name, and {_EXPORT}"
    if name in _TEXTS and not (isinstance(value, str) and value):
        return f"{name} needs a value: {name}=…"
    return _value_problem(name, value)


def variable_problem(name: str, value: str) -> str:
    """Why a variable may not be set for a server; empty if it may."""
    if not _VARIABLE.fullmatch(name):
        return "a variable is written NAME=VALUE, its name in letters, digits and underscores"
    if _SECRET_VARIABLE.search(name):
        return f"{name} is a secret by its name, and {_EXPORT}; export it instead: the server inherits the environment"
    return _value_problem(name, value)


def _value_problem(name: str, value: Value) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} is {value}, must be a finite number"
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and any(ord(char) < 32 or ord(char) == 127 for char in text):
            return f"the value of {name} has a line break or another control character; write it on one line"
        if isinstance(text, str) and _URL_WITH_LOGIN.search(text):
            return f"the value of {name} is an address with a login, and {_EXPORT}"
    return ""


def render(name: str, value: Value) -> tuple[str, ...]:
    """The words that an argument makes on a command line; none if it is left out."""
    if isinstance(value, bool):
        return (f"--{name}",) if value else ()
    if isinstance(value, tuple):
        return (f"--{name}", *value)
    return (f"--{name}={value}",)
