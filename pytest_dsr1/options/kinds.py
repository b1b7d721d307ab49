"""The kinds of options: for each a reader of its text, and what it accepts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

# Other modules are imported when an option is read: this one is imported in every pytest session.


Number = TypeVar("Number", int, float)
_ABOVE_0 = sys.float_info.min


class NotAcceptedError(ValueError):
    """A value is not accepted; the message is the reason."""


def number(of: Callable[[str], Number], minimum: float, maximum: float = sys.float_info.max) -> Callable[[str], Number]:
    """A reader of finite numbers from `minimum` to `maximum`."""

    def parse(text: str) -> Number:
        value = of(text)
        if not minimum <= value <= maximum:
            raise ValueError
        return value

    return parse


def concurrencies(text: str) -> tuple[int, ...]:
    """Whole numbers from 1, separated by commas, each once."""
    values = tuple(number(int, 1)(part) for part in text.split(","))
    if len(set(values)) != len(values):
        raise ValueError
    return values


def of_core(name: str) -> Callable[[str], Any]:
    """A reader of that name in `core.config`."""
    return lambda text: getattr(import_module("pytest_dsr1.core.config"), name)(text)


def team(text: str) -> str:
    """A team's name as it is submitted."""
    from pytest_dsr1.core.config import team_problem

    if problem := team_problem(text):
        raise NotAcceptedError(problem)
    return text


def address(text: str) -> str:
    """An http or https address without user, query or fragment."""
    parts = urlsplit(text)
    unwanted = parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme not in ("http", "https") or not parts.hostname or unwanted:
        raise ValueError
    _ = parts.port  # raises ValueError beyond 65535
    return text.rstrip("/")


def server_url(text: str) -> str:
    """The address of a server, without /v1."""
    return address(text).removesuffix("/v1")


def filled(text: str) -> str:
    """Any text but an empty one."""
    if not text.strip():
        raise ValueError
    return text


def path(text: str) -> Path:
    """A path, as it was typed."""
    return Path(filled(text))


def absolute_path(text: str) -> Path:
    """A path that also holds when the batch is resumed from another folder."""
    return Path(filled(text)).expanduser().absolute()


def recipe(text: str) -> str:
    """The name of a recipe, or the absolute path of one: a name has no slash."""
    return str(absolute_path(text)) if "/" in text or text.endswith(".toml") else filled(text)


def of_launch(name: str) -> Callable[[str], str]:
    """A check by a function of that name in `servers.launch`; the value is the text."""

    def parse(text: str) -> str:
        try:
            getattr(import_module("pytest_dsr1.servers.launch"), name)(text)
        except ValueError as error:
            raise NotAcceptedError(str(error)) from None
        return text

    return parse


class Kind(NamedTuple):
    """What the text of an option may be.

    :param parse: Text to value. A ValueError or KeyError becomes a usage error that quotes `accepted`.
    :param metavar: Stands for the text in --help.
    """

    parse: Callable[[str], Any]
    accepted: str
    metavar: str


#: For an option without a text.
FLAG = Kind(filled, "", "")
COUNT = Kind(number(int, 1), "a whole number from 1", "N")
VOCAB_SIZE = Kind(number(int, 2), "a whole number from 2", "N")
PORT = Kind(number(int, 1, 65535), "a whole number from 1 to 65535", "PORT")
SEED = Kind(number(int, 0, 2**32 - 1), "a whole number from 0 to 2^32-1", "N")
SECONDS = Kind(number(float, _ABOVE_0), "a number of seconds above 0", "SECONDS")
RANGE_RATIO = Kind(number(float, _ABOVE_0, 1), "a number above 0 and at most 1", "R")
CONCURRENCIES = Kind(concurrencies, "whole numbers from 1, each once, separated by commas", "LIST")
SCENARIOS = Kind(
    of_core("scenarios_of"),
    "ISL/OSL pairs of whole numbers from 1, each once, separated by commas, or all",
    "ISL/OSL[,...]",
)
MODE = Kind(of_core("Mode"), "acc, perf or submit", "MODE")
ENGINE = Kind(of_core("Engine"), "auto, sglang or reference", "ENGINE")
GATE = Kind({"gate": True, "off": False}.__getitem__, "gate or off", "gate|off")
TEAM = Kind(team, "a team name on one line", "NAME")
ADDRESS = Kind(address, "http(s)://HOST[:PORT][/PATH], without user, query or fragment", "URL")
SERVER_URL = Kind(server_url, "http(s)://HOST[:PORT], without user, query or fragment", "URL")
MODEL = Kind(filled, "a model's name or folder", "NAME|PATH")
TOKENIZER = Kind(filled, "a folder or a hub name", "NAME|PATH")
RECIPE = Kind(recipe, "the name of a recipe or the path of one", "NAME|PATH")
SERVER_ARG = Kind(of_launch("parse_server_arg"), "an argument of SGLang", "NAME[=VALUE]")
SERVER_ENV = Kind(of_launch("parse_server_env"), "a variable", "NAME=VALUE")
PATH = Kind(absolute_path, "a path", "PATH")
FOLDER = Kind(path, "a path", "DIR")
BATCH = Kind(path, "a batch folder", "DIR")
