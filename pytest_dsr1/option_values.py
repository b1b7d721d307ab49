"""What an option's text may be: each function reads one, and a ValueError refuses it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from pytest_dsr1.core.routing import team_problem


def integer(minimum: int, maximum: float = math.inf) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not minimum <= value <= maximum:
            raise ValueError
        return value

    return parse


def number(accept: Callable[[float], bool]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and accept(value)):
            raise ValueError
        return value

    return parse


def concurrencies(text: str) -> tuple[int, ...]:
    values = tuple(integer(1)(part) for part in text.split(","))
    if len(set(values)) != len(values):
        raise ValueError
    return values


def address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError
    if parts.username or parts.password:
        raise ValueError
    _ = parts.port  # raises ValueError beyond 65535
    return text.rstrip("/")


def server_url(text: str) -> str:
    return address(text).removesuffix("/v1")


class NotAcceptedError(ValueError):
    """A value is not accepted for a reason of its own, which stands in the message."""


def team(text: str) -> str:
    if problem := team_problem(text):
        raise NotAcceptedError(problem)
    return text


def filled(text: str) -> str:
    if not text.strip():
        raise ValueError
    return text


def absolute_path(text: str) -> Path:
    # A resumed batch may be resumed from another folder.
    return Path(filled(text)).expanduser().absolute()


def recipe(text: str) -> str:
    # A path is made absolute, since a resumed batch may be resumed from another folder; a name has no slash.
    return str(absolute_path(text)) if "/" in text or text.endswith(".toml") else filled(text)


def checked(read: Callable[[str], object]) -> Callable[[str], str]:
    """The text itself, if `read` can read it."""

    def parse(text: str) -> str:
        try:
            read(text)
        except ValueError as error:
            raise NotAcceptedError(str(error)) from None
        return text

    return parse
