"""What a sweep is asked to do: one frozen value, made once from options and never looked up again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

#: The concurrencies of the seed's sweep.
CONCURRENCIES = (4, 8, 16, 32, 64)
#: The model of the competition, and what `--model` means when nobody says otherwise.
DEFAULT_MODEL = "amd/DeepSeek-R1-0528-MXFP4-Preview"
#: Requests sent before the measured ones, per concurrency slot.
WARMUPS_PER_SLOT = 2
#: Output length from which the seed measures fewer requests and waits longer for each.
LONG_OSL = 8192


class Mode(StrEnum):
    """What is done at each point."""

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
        """The test id, which `-k conc16` and `-k isl1024` select by."""
        return f"isl{self.isl}-osl{self.osl}-conc{self.conc}"


#: The three scenarios of the competition; with the five concurrencies, its 15 configurations.
ALL_SCENARIOS = (Scenario(1024, 1024), Scenario(1024, 8192), Scenario(8192, 1024))


def scenarios_of(text: str) -> tuple[Scenario, ...]:
    """Scenarios as `--scenario` takes them: `ISL/OSL[,ISL/OSL...]`, or `all` for the competition's three.

    :raises ValueError: It is not of this form, a length is below 1, or a scenario is there twice.
    """
    if text == "all":
        return ALL_SCENARIOS
    pairs = [part.split("/") for part in text.split(",")]
    values = tuple(Scenario(int(isl), int(osl)) for isl, osl in pairs)
    if len(set(values)) != len(values):
        raise ValueError(f"{text!r} names a scenario twice")
    return values


def formula_num_prompts(osl: int, conc: int) -> int:
    """How many requests the seed measures: CONC x 20 at OSL 8192, else CONC x 50."""
    return conc * (20 if osl == LONG_OSL else 50)


@dataclass(frozen=True, kw_only=True)
class LoadLimits:
    """How long the load generator waits.

    :param idle_timeout_s: Longest time without a byte. 300 s by default: a JIT pause of 57 s is known.
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
    """How a server is to be started, as typed; None and empty where nothing was.

    :param recipe: A shipped recipe's name, or the path of one.
    :param server_args: Arguments that the recipe's are extended by, as `parse_server_arg` reads them.
    :param server_env: NAME=VALUE, likewise.
    :param sglang_python: The interpreter that has SGLang.
    :param timeout_s: Longest wait for a start; a first one compiles kernels for 20 to 30 minutes.
    :param keep: Whether the server outlives the session.
    """

    recipe: str | None = None
    server_args: tuple[str, ...] = ()
    server_env: tuple[str, ...] = ()
    sglang_python: Path | None = None
    timeout_s: float = 3600.0
    keep: bool = False

    @property
    def typed(self) -> tuple[str, ...]:
        """The options that say how a server is started, of those that were typed."""
        options = {
            "--recipe": self.recipe,
            "--server-arg": self.server_args,
            "--server-env": self.server_env,
            "--sglang-python": self.sglang_python,
        }
        return tuple(name for name, value in options.items() if value)


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Everything that was asked for, validated, with every default filled in that needs no server.

    None means "not said", where a server or the engine decides.

    :param server_urls: Servers that run already; several are measured by as many workers.
    :param print_launch: Whether only the command line of a server is to be shown.
    :param model_from_environment: MODEL said it: a preference that another server's model overrides.
    :param prompt_seed: Seed of the session's prompts; recorded with every result.
    :param tp: Tensor parallelism as typed; a result whose server says nothing counts it as assumed.
    :param accuracy: Whether the gate is evaluated (`--accuracy gate`) or left out (`off`).
    :param accuracy_limit: Only the first N documents: a task of its own, never submitted.
    :param team: Under which name results are submitted; None unless the mode is submit.
    :param leaderboard_url: Where, as typed; None: the Space of the lengths.
    :param accept_schema: Whether a leaderboard's labels that nobody recognises mean what we send.
    :param submit_timeout_s: For one submission, from its first attempt to its outcome.
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
        """Every point in sweep order: scenario after scenario, concurrencies as typed."""
        return tuple(Point(scenario, conc) for scenario in self.scenarios for conc in self.concurrencies)

    def num_prompts_at(self, point: Point) -> int:
        """Requests measured at `point`."""
        return self.num_prompts if self.num_prompts is not None else formula_num_prompts(point.osl, point.conc)

    def num_warmups_at(self, point: Point) -> int:
        """Requests sent, and drained, before the measured ones."""
        return WARMUPS_PER_SLOT * point.conc
