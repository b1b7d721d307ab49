"""The options: their names, where else each may be set, and what each accepts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytest_dsr1.core.config import ALL_SCENARIOS, Engine, Mode, Scenario
from pytest_dsr1.leaderboard.teams import MAX_TEAM, team_problem


def _integer(minimum: int, maximum: float = math.inf) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not minimum <= value <= maximum:
            raise ValueError
        return value

    return parse


def _number(accept: Callable[[float], bool]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and accept(value)):
            raise ValueError
        return value

    return parse


def _concurrencies(text: str) -> tuple[int, ...]:
    values = tuple(_integer(1)(part) for part in text.split(","))
    if len(set(values)) != len(values):
        raise ValueError
    return values


def _scenarios(text: str) -> tuple[Scenario, ...]:
    if text == "all":
        return ALL_SCENARIOS
    pairs = [part.split("/") for part in text.split(",")]
    values = tuple(Scenario(_integer(1)(isl), _integer(1)(osl)) for isl, osl in pairs)
    if len(set(values)) != len(values):
        raise ValueError
    return values


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError
    if parts.username or parts.password:
        raise ValueError
    _ = parts.port  # raises ValueError beyond 65535
    return text.rstrip("/")


def _url(text: str) -> str:
    return _address(text).removesuffix("/v1")


class NotAcceptedError(ValueError):
    """A value is not accepted for a reason of its own, which stands in the message."""


def _team(text: str) -> str:
    if problem := team_problem(text):
        raise NotAcceptedError(problem)
    return text


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError
    return text


def _file(text: str) -> Path:
    # A resumed batch may be resumed from another folder.
    return Path(_filled(text)).expanduser().absolute()


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option and where else its value may come from.

    :param parse: Text to value; a ValueError becomes a usage error that quotes `accepted`.
    :param stored: Whether a batch keeps it, so that a resumed run measures the same.
    """

    name: str
    help: str
    accepted: str = ""
    parse: Callable[[str], Any] = _filled
    metavar: str | None = "N"
    environment: str | None = None
    flag: bool = False
    repeatable: bool = False
    stored: bool = True

    @property
    def is_path(self) -> bool:
        return self.metavar in ("PATH", "FILE", "DIR", "NAME|PATH")

    @property
    def dest(self) -> str:
        return "dsr1_" + self.name.lstrip("-").replace("-", "_")


_POSITIVE = "a whole number from 1"
_SECONDS = "a number of seconds above 0"

OPTIONS = (
    Option(name="--isl", help="Input sequence length in tokens", accepted=_POSITIVE, parse=_integer(1)),
    Option(name="--osl", help="Output sequence length in tokens", accepted=_POSITIVE, parse=_integer(1)),
    Option(
        name="--scenario",
        help="Several combinations of lengths in one session: ISL/OSL[,ISL/OSL...], or all for the competition's three",
        accepted="ISL/OSL pairs of whole numbers from 1, each once, separated by commas, or all",
        parse=_scenarios,
        metavar="ISL/OSL[,...]",
    ),
    Option(
        name="--conc",
        help="Concurrency levels, separated by commas (default: 4,8,16,32,64)",
        accepted="whole numbers from 1, each once, separated by commas",
        parse=_concurrencies,
        metavar="LIST",
    ),
    Option(
        name="--mode",
        help="acc: accuracy only; perf: accuracy and performance (default); submit: also submit to the leaderboard",
        accepted="acc, perf or submit",
        parse=Mode,
        metavar="MODE",
    ),
    Option(
        name="--submit-team",
        help="Submit each result under this team name; implies --mode submit",
        accepted=f"a team name of 1 to {MAX_TEAM} characters on one line",
        parse=_team,
        metavar="NAME",
    ),
    Option(
        name="--leaderboard-url",
        help="Submit there (default: the competition's Space of these lengths); {isl} and {osl} stand for the lengths",
        accepted="http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH], without user, query or fragment",
        parse=_address,
        metavar="URL",
    ),
    Option(
        name="--accept-schema",
        help="The leaderboard's labels that nobody recognises mean what is sent; remembered until they change",
        flag=True,
        stored=False,
    ),
    Option(
        name="--submit-timeout",
        help="Longest time for one submission, back-off and waiting included, in seconds (default: 300)",
        accepted=_SECONDS,
        parse=_number(lambda value: value > 0),
        metavar="SECONDS",
        stored=False,
    ),
    Option(
        name="--submit-pending",
        help="Send what this batch folder has not sent yet, and run nothing",
        accepted="a batch folder",
        parse=lambda text: Path(_filled(text)),
        metavar="DIR",
        stored=False,
    ),
    Option(
        name="--yes",
        help="With --submit-pending: send again what was refused, or may have arrived, without asking",
        flag=True,
        stored=False,
    ),
    Option(
        name="--engine",
        help="Who serves: auto (default) prefers a server on --port that names our model, else the embedded reference",
        accepted="auto, sglang or reference",
        parse=Engine,
        metavar="ENGINE",
    ),
    Option(
        name="--server-url",
        help="A running OpenAI-compatible server; never started, stopped or reconfigured",
        accepted="http://HOST[:PORT] or https://HOST[:PORT], without user, query or fragment",
        parse=_url,
        metavar="URL",
        repeatable=True,
    ),
    Option(
        name="--no-flush-cache",
        help="Leave an external server's prefix cache as it is; by default it is flushed before each measurement",
        flag=True,
    ),
    Option(
        name="--model",
        help="The served model (default: amd/DeepSeek-R1-0528-MXFP4-Preview; with --server-url the one that it names)",
        accepted="a model name",
        metavar="NAME",
        environment="MODEL",
    ),
    Option(
        name="--tokenizer",
        help="Whose tokenizer makes the accuracy task's ids: a folder or a hub name (default: the server's)",
        accepted="a folder or a hub name",
        metavar="NAME|PATH",
    ),
    Option(
        name="--vocab-size",
        help="Token ids of prompts are below this (default: what the server or its tokenizer says)",
        accepted="a whole number from 2",
        parse=_integer(2),
    ),
    Option(
        name="--port",
        help="Port of the SGLang server on this machine (default: 8888)",
        accepted="a whole number from 1 to 65535",
        parse=_integer(1, 65535),
        metavar="PORT",
        environment="PORT",
    ),
    Option(
        name="--tp",
        help="Tensor parallelism of the SGLang server (default: 8)",
        accepted=_POSITIVE,
        parse=_integer(1),
        environment="TP",
    ),
    Option(
        name="--accuracy",
        help="gate (default): accuracy first, and no performance outside the gate; off: performance only",
        accepted="gate or off",
        parse=lambda text: {"gate": True, "off": False}[text],
        metavar="gate|off",
    ),
    Option(
        name="--accuracy-data",
        help="The accuracy corpus from a file of JSON rows instead of the hub",
        accepted="a path",
        parse=_file,
        metavar="PATH",
    ),
    Option(
        name="--accuracy-limit",
        help="Only the first N documents of the accuracy task: a task of its own, with its own baseline",
        accepted=_POSITIVE,
        parse=_integer(1),
    ),
    Option(
        name="--accuracy-baseline",
        help="Accuracy baselines from this file, for a model that has no published one",
        accepted="a path",
        parse=_file,
        metavar="FILE",
    ),
    Option(
        name="--record-accuracy-baseline",
        help="Write the measured accuracy to this file, for --accuracy-baseline",
        accepted="a path",
        parse=_file,
        metavar="FILE",
        stored=False,
    ),
    Option(
        name="--num-prompts",
        help="Requests measured at each concurrency (default: CONC*20 if OSL is 8192, else CONC*50)",
        accepted=_POSITIVE,
        parse=_integer(1),
    ),
    Option(
        name="--random-range-ratio",
        help="Lengths are drawn uniformly from floor(R*L)..L (default: 1.0, all alike)",
        accepted="a number above 0 and at most 1",
        parse=_number(lambda value: 0 < value <= 1),
        metavar="R",
    ),
    Option(
        name="--prompt-seed",
        help="Seed of the prompts (default: drawn for each session, and recorded)",
        accepted="a whole number from 0 to 2^32-1",
        parse=_integer(0, 2**32 - 1),
    ),
    Option(
        name="--idle-timeout",
        help="Longest time without a byte of a response, in seconds (default: 300)",
        accepted=_SECONDS,
        parse=_number(lambda value: value > 0),
        metavar="SECONDS",
    ),
    Option(
        name="--request-timeout",
        help="Longest time for one request, in seconds (default: 1800; 3600 from OSL 8192)",
        accepted=_SECONDS,
        parse=_number(lambda value: value > 0),
        metavar="SECONDS",
    ),
    Option(
        name="--reports-dir",
        help="Where batch folders go, relative to the rootdir (default: reports)",
        accepted="a path",
        parse=lambda text: Path(_filled(text)),
        metavar="DIR",
        stored=False,
    ),
    Option(
        name="--resume",
        help="Complete this interrupted batch folder; its options come from the folder (repeatable)",
        accepted="a batch folder",
        parse=lambda text: Path(_filled(text)),
        metavar="DIR",
        repeatable=True,
        stored=False,
    ),
    Option(
        name="--preflight",
        help="Check all that needs no server, say what would run, and run nothing",
        flag=True,
        stored=False,
    ),
)
BY_NAME = {option.name: option for option in OPTIONS}
