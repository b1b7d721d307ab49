"""The options: their names, where else each may be set, and what each accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_dsr1.core.config import Engine, Mode
from pytest_dsr1.leaderboard.teams import MAX_TEAM
from pytest_dsr1.option_values import (
    absolute_path,
    address,
    checked,
    concurrencies,
    filled,
    integer,
    number,
    recipe,
    scenarios,
    server_url,
    team,
)
from pytest_dsr1.servers.launch import parse_server_arg, parse_server_env


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option and where else its value may come from.

    :param parse: Text to value; a ValueError becomes a usage error that quotes `accepted`.
    :param names_only: Whether an error quotes no more than what stands before the first "=": the rest may be a secret.
    :param stored: Whether a batch keeps it, so that a resumed run measures the same.
    """

    name: str
    help: str
    accepted: str = ""
    parse: Callable[[str], Any] = filled
    metavar: str | None = "N"
    environment: str | None = None
    flag: bool = False
    repeatable: bool = False
    names_only: bool = False
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
    Option(name="--isl", help="Input sequence length in tokens", accepted=_POSITIVE, parse=integer(1)),
    Option(name="--osl", help="Output sequence length in tokens", accepted=_POSITIVE, parse=integer(1)),
    Option(
        name="--scenario",
        help="Several combinations of lengths in one session: ISL/OSL[,ISL/OSL...], or all for the competition's three",
        accepted="ISL/OSL pairs of whole numbers from 1, each once, separated by commas, or all",
        parse=scenarios,
        metavar="ISL/OSL[,...]",
    ),
    Option(
        name="--conc",
        help="Concurrency levels, separated by commas (default: 4,8,16,32,64)",
        accepted="whole numbers from 1, each once, separated by commas",
        parse=concurrencies,
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
        parse=team,
        metavar="NAME",
    ),
    Option(
        name="--leaderboard-url",
        help="Submit there (default: the competition's Space of these lengths); {isl} and {osl} stand for the lengths",
        accepted="http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH], without user, query or fragment",
        parse=address,
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
        parse=number(lambda value: value > 0),
        metavar="SECONDS",
        stored=False,
    ),
    Option(
        name="--submit-pending",
        help="Send what this batch folder has not sent yet, and run nothing",
        accepted="a batch folder",
        parse=lambda text: Path(filled(text)),
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
        help="Who serves: auto (default) takes a server on --port that names our model, else launches SGLang where "
        "there is a GPU, else the embedded reference",
        accepted="auto, sglang or reference",
        parse=Engine,
        metavar="ENGINE",
    ),
    Option(
        name="--server-url",
        help="A running OpenAI-compatible server; never started, stopped or reconfigured",
        accepted="http://HOST[:PORT] or https://HOST[:PORT], without user, query or fragment",
        parse=server_url,
        metavar="URL",
        repeatable=True,
    ),
    Option(
        name="--recipe",
        help="How SGLang is launched: a shipped recipe (mi355x, mi355x-mtp, b200, hopper, cpu) or a file "
        "(default: by the GPU seen)",
        accepted="the name of a recipe or the path of one",
        parse=recipe,
        metavar="NAME|PATH",
    ),
    Option(
        name="--server-arg",
        help="An argument of SGLang, without its --, in the place of the recipe's: "
        "--server-arg mem-fraction-static=0.9 (repeatable)",
        parse=checked(parse_server_arg),
        metavar="NAME[=VALUE]",
        repeatable=True,
        names_only=True,
    ),
    Option(
        name="--server-env",
        help="An environment variable of SGLang (repeatable)",
        parse=checked(parse_server_env),
        metavar="NAME=VALUE",
        repeatable=True,
        names_only=True,
    ),
    Option(
        name="--sglang-python",
        help="The Python that has SGLang (default: ours, else the first python3 on PATH that has it)",
        accepted="a path",
        parse=absolute_path,
        metavar="PATH",
    ),
    Option(
        name="--launch-timeout",
        help="Longest wait for a launched server, in seconds (default: 3600; a first start takes 20 to 30 minutes)",
        accepted=_SECONDS,
        parse=number(lambda value: value > 0),
        metavar="SECONDS",
        stored=False,
    ),
    Option(
        name="--keep-server",
        help="Leave a launched server running; the next session finds it on its port",
        flag=True,
        stored=False,
    ),
    Option(
        name="--print-launch",
        help="Show command line and environment of the server that would be launched, and run nothing",
        flag=True,
        stored=False,
    ),
    Option(
        name="--no-flush-cache",
        help="Leave an external server's prefix cache as it is; by default it is flushed before each measurement",
        flag=True,
    ),
    Option(
        name="--model",
        help="The served model (default: amd/DeepSeek-R1-0528-MXFP4-Preview; with --server-url the one that it names)",
        accepted="a model's name or folder",
        metavar="NAME|PATH",
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
        parse=integer(2),
    ),
    Option(
        name="--port",
        help="Port of the SGLang server on this machine (default: 8888)",
        accepted="a whole number from 1 to 65535",
        parse=integer(1, 65535),
        metavar="PORT",
        environment="PORT",
    ),
    Option(
        name="--tp",
        help="Tensor parallelism of the SGLang server (default: 8)",
        accepted=_POSITIVE,
        parse=integer(1),
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
        parse=absolute_path,
        metavar="PATH",
    ),
    Option(
        name="--accuracy-limit",
        help="Only the first N documents of the accuracy task: a task of its own, with its own baseline",
        accepted=_POSITIVE,
        parse=integer(1),
    ),
    Option(
        name="--accuracy-baseline",
        help="Accuracy baselines from this file, for a model that has no published one",
        accepted="a path",
        parse=absolute_path,
        metavar="FILE",
    ),
    Option(
        name="--record-accuracy-baseline",
        help="Write the measured accuracy to this file, for --accuracy-baseline",
        accepted="a path",
        parse=absolute_path,
        metavar="FILE",
        stored=False,
    ),
    Option(
        name="--num-prompts",
        help="Requests measured at each concurrency (default: CONC*20 if OSL is 8192, else CONC*50)",
        accepted=_POSITIVE,
        parse=integer(1),
    ),
    Option(
        name="--random-range-ratio",
        help="Lengths are drawn uniformly from floor(R*L)..L (default: 1.0, all alike)",
        accepted="a number above 0 and at most 1",
        parse=number(lambda value: 0 < value <= 1),
        metavar="R",
    ),
    Option(
        name="--prompt-seed",
        help="Seed of the prompts (default: drawn for each session, and recorded)",
        accepted="a whole number from 0 to 2^32-1",
        parse=integer(0, 2**32 - 1),
    ),
    Option(
        name="--idle-timeout",
        help="Longest time without a byte of a response, in seconds (default: 300)",
        accepted=_SECONDS,
        parse=number(lambda value: value > 0),
        metavar="SECONDS",
    ),
    Option(
        name="--request-timeout",
        help="Longest time for one request, in seconds (default: 1800; 3600 from OSL 8192)",
        accepted=_SECONDS,
        parse=number(lambda value: value > 0),
        metavar="SECONDS",
    ),
    Option(
        name="--reports-dir",
        help="Where batch folders go, relative to the rootdir (default: reports)",
        accepted="a path",
        parse=lambda text: Path(filled(text)),
        metavar="DIR",
        stored=False,
    ),
    Option(
        name="--resume",
        help="Complete this interrupted batch folder; its options come from the folder (repeatable)",
        accepted="a batch folder",
        parse=lambda text: Path(filled(text)),
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
