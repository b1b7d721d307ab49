"""What a sweep is to do: one frozen value, made once from the options."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

#: The concurrencies of the competition.
CONCURRENCIES = (4, 8, 16, 32, 64)
#: The model of the competition; the default of `--model`.
DEFAULT_MODEL = "amd/DeepSeek-R1-0528-MXFP4-Preview"
#: Warm-up requests per concurrency slot.
WARMUPS_PER_SLOT = 2
#: Output length from which fewer requests are measured, with a longer timeout for each.
LONG_OSL = 8192
#: Most characters of a team name: the leaderboard's table has no room for more.
MAX_TEAM = 200


class Mode(StrEnum):
    """What is measured at each point."""

    ACC = "acc"
    PERF = "perf"
    SUBMIT = "submit"


class Engine(StrEnum):
    """Who serves the model."""

    AUTO = "auto"
    SGLANG = "sglang"
    REFERENCE = "reference"


@dataclass(frozen=True, order=True, slots=True)
class Scenario:
    """One combination of lengths in tokens; each has a batch folder of its own.

    :param isl: Input sequence length, at least 1.
    :param osl: Output sequence length, at least 1.
    """

    isl: int
    osl: int

    def __post_init__(self) -> None:
        if self.isl < 1 or self.osl < 1:
            raise ValueError(f"lengths are at least 1 token, got ISL {self.isl}, OSL {self.osl}")

    def __str__(self) -> str:
        return f"{self.isl}/{self.osl}"


@dataclass(frozen=True, order=True, slots=True)
class Point:
    """One configuration to measure: a scenario under `conc` requests in flight."""

    scenario: Scenario
    conc: int

    def __post_init__(self) -> None:
        if self.conc < 1:
            raise ValueError(f"a concurrency is at least 1, got {self.conc}")

    @property
    def isl(self) -> int:
        return self.scenario.isl

    @property
    def osl(self) -> int:
        return self.scenario.osl

    @property
    def id(self) -> str:
        """The test id, which `-k conc16` and `-k isl1024` select from."""
        return f"isl{self.isl}-osl{self.osl}-conc{self.conc}"


#: The three scenarios of the competition; with the five concurrencies, its 15 configurations.
ALL_SCENARIOS = (Scenario(1024, 1024), Scenario(1024, 8192), Scenario(8192, 1024))
#: The competition's Spaces, one for each of its scenarios.
SPACES: Mapping[Scenario, str] = {
    scenario: f"https://daniehua-dsr1-fp4-sgl-isl{scenario.isl}osl{scenario.osl}.hf.space" for scenario in ALL_SCENARIOS
}


def scenarios_of(text: str) -> tuple[Scenario, ...]:
    """Scenarios as `--scenario` takes them: `ISL/OSL[,ISL/OSL...]`, or `all`.

    :raises ValueError: It is not of this form, a length is below 1, or a scenario is there twice.
    """
    if text == "all":
        return ALL_SCENARIOS
    pairs = [part.split("/") for part in text.split(",")]
    values = tuple(Scenario(int(isl), int(osl)) for isl, osl in pairs)
    if len(set(values)) != len(values):
        raise ValueError(f"{text!r} names a scenario twice")
    return values


def leaderboard_for(scenario: Scenario, typed: str | None = None) -> str | None:
    """Base URL of the leaderboard; None if there is none for these lengths.

    :param typed: `--leaderboard-url`, in which `{isl}` and `{osl}` stand for the lengths.
    """
    if typed is None:
        return SPACES.get(scenario)
    return typed.replace("{isl}", str(scenario.isl)).replace("{osl}", str(scenario.osl))


def routing_problem(scenarios: Sequence[Scenario], typed: str | None) -> str:
    """What is wrong with `--leaderboard-url` for these scenarios; empty if nothing.

    A row does not contain its lengths. If the results of two scenarios went to one leaderboard, nobody could tell
    them apart.
    """
    if typed is None or len({leaderboard_for(scenario, typed) for scenario in scenarios}) == len(scenarios):
        return ""
    return (
        f"--leaderboard-url {typed} is one leaderboard for {len(scenarios)} combinations of lengths, and a row does "
        "not say which one it belongs to; write {isl} and {osl} into the URL where the lengths stand, or run one "
        "combination at a time"
    )


def team_problem(name: str) -> str:
    """Why a team cannot have this name; empty if it can.

    A name is never changed: it is sent as typed, or refused.
    """
    if not name.strip():
        return "it is empty"
    if len(name) > MAX_TEAM:
        return f"it has {len(name):,} characters, at most {MAX_TEAM} are accepted"
    for char in name:
        category = unicodedata.category(char)
        if category == "Cs":
            return "it is not UTF-8"
        # Format characters (Cf) are allowed: they join the parts of an emoji.
        if category in ("Cc", "Zl", "Zp"):
            return f"it holds a line break or control character (U+{ord(char):04X})"
    return ""


def formula_num_prompts(osl: int, conc: int) -> int:
    """The default number of measured requests: CONC x 20 at OSL 8192, else CONC x 50."""
    return conc * (20 if osl == LONG_OSL else 50)


@dataclass(frozen=True, kw_only=True)
class LoadLimits:
    """Timeouts of the load generator.

    :param idle_timeout_s: Longest time without a byte. 300 s by default: a server's JIT was seen to pause it for 57 s.
    :param request_timeout_s: Longest time for one request; None: 1,800 s, 3,600 s at OSL 8192.
    """

    idle_timeout_s: float = 300.0
    request_timeout_s: float | None = None

    def request_timeout_for(self, osl: int) -> float:
        """The deadline of one request of `osl` tokens, in seconds."""
        if self.request_timeout_s is not None:
            return self.request_timeout_s
        return 3600.0 if osl >= LONG_OSL else 1800.0


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How to start a server, as typed; None or empty for what was not typed.

    :param recipe: Name of a recipe of this package, or path of a recipe.
    :param server_args: Arguments added to those of the recipe, as `parse_server_arg` reads them.
    :param server_env: Environment variables added to those of the recipe, as NAME=VALUE.
    :param sglang_python: Path of the Python interpreter that has SGLang.
    :param timeout_s: Longest wait for the start; the first start compiles kernels for 20 to 30 minutes.
    :param keep: Whether the server keeps running after the session.
    """

    recipe: str | None = None
    server_args: tuple[str, ...] = ()
    server_env: tuple[str, ...] = ()
    sglang_python: Path | None = None
    timeout_s: float = 3600.0
    keep: bool = False

    @property
    def typed(self) -> tuple[str, ...]:
        """Names of the options above that were typed."""
        options = {
            "--recipe": self.recipe,
            "--server-arg": self.server_args,
            "--server-env": self.server_env,
            "--sglang-python": self.sglang_python,
        }
        return tuple(name for name, value in options.items() if value)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """All options of a sweep, validated, with the defaults that need no server.

    None stands for an option that was not typed and that the server or the engine decides.

    :param server_urls: Running servers to measure; each needs a worker of its own (pytest-xdist) if there are several.
    :param print_launch: Whether to print the command line of the server and do nothing else.
    :param model_from_environment: Whether `model` is from the environment variable MODEL: it is a preference then, and
        a running server with another model is accepted.
    :param prompt_seed: Seed of the session's prompts; recorded with every result.
    :param tp: Tensor parallelism as typed; used, marked as assumed, where the server does not report its GPUs.
    :param accuracy: Whether the gate is evaluated (`--accuracy gate`) or left out (`off`).
    :param accuracy_limit: Use the first N documents only; a task with a name of its own, never submitted.
    :param team: Name under which results are submitted; None unless the mode is submit.
    :param leaderboard_url: The leaderboard, as typed; None: the Space for these lengths.
    :param accept_schema: Whether unknown labels of a leaderboard are assumed to stand for the expected values.
    :param submit_timeout_s: Longest time for one submission, from its first attempt to its outcome.
    """

    scenarios: tuple[Scenario, ...]
    concurrencies: tuple[int, ...] = CONCURRENCIES
    mode: Mode = Mode.PERF
    engine: Engine = Engine.AUTO
    server_urls: tuple[str, ...] = ()
    launch: LaunchConfig = LaunchConfig()
    print_launch: bool = False
    flush_cache: bool = True
    model: str | None = None
    model_from_environment: bool = False
    tokenizer: str | None = None
    vocab_size: int | None = None
    port: int = 8888
    tp: int | None = None
    accuracy: bool = True
    accuracy_data: Path | None = None
    accuracy_limit: int | None = None
    accuracy_baseline: Path | None = None
    record_accuracy_baseline: Path | None = None
    num_prompts: int | None = None
    random_range_ratio: float = 1.0
    prompt_seed: int = 0
    limits: LoadLimits = LoadLimits()
    reports_dir: Path = Path("reports")
    resume: tuple[Path, ...] = ()
    preflight: bool = False
    team: str | None = None
    leaderboard_url: str | None = None
    accept_schema: bool = False
    submit_timeout_s: float = 300.0

    @property
    def points(self) -> tuple[Point, ...]:
        """All points in sweep order: by scenario, then by concurrency as typed."""
        return tuple(Point(scenario, conc) for scenario in self.scenarios for conc in self.concurrencies)

    @property
    def launch_points(self) -> tuple[Point, ...]:
        """The points to launch a server for; a usual one if no point is known yet."""
        return self.points or (Point(ALL_SCENARIOS[0], self.concurrencies[0]),)

    def num_prompts_at(self, point: Point) -> int:
        """Requests measured at `point`."""
        return self.num_prompts if self.num_prompts is not None else formula_num_prompts(point.osl, point.conc)

    def num_warmups_at(self, point: Point) -> int:
        """Warm-up requests, completed before the first measured one is sent."""
        return WARMUPS_PER_SLOT * point.conc
