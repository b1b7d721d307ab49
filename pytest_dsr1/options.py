"""Command line, environment and ini file become one SweepConfig; every usage error is worded here."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_dsr1.core.config import CONCURRENCIES, Engine, LaunchConfig, LoadLimits, Mode, Scenario, SweepConfig
from pytest_dsr1.core.routing import routing_problem
from pytest_dsr1.core.text import one_line
from pytest_dsr1.option_table import BY_NAME, OPTIONS, Option
from pytest_dsr1.option_values import NotAcceptedError

#: What was typed: option name to its text, texts of a repeatable one, or True of a flag.
Typed = Mapping[str, Any]
#: The seed's variable.
TEAM_VARIABLE = "TEAM_NAME_ENV"


def add_options(parser: pytest.Parser) -> None:
    """Declare the options; texts stay texts, so that one place words the errors."""
    group = parser.getgroup("dsr1", "DeepSeek-R1 serving benchmark")
    for option in OPTIONS:
        if option.flag:
            group.addoption(option.name, dest=option.dest, action="store_true", default=None, help=option.help)
        else:
            action = "append" if option.repeatable else "store"
            group.addoption(
                option.name, dest=option.dest, action=action, default=None, metavar=option.metavar, help=option.help
            )
        kind: Any = "bool" if option.flag else "args" if option.repeatable else "string"
        # Not typed in the ini file must be told apart from an empty value, hence None as the default.
        parser.addini(option.dest, f"Default of {option.name}", type=kind, default=None)


def typed_options(config: pytest.Config) -> dict[str, Any]:
    """The options that stand on the command line."""
    return _given(config.getoption)


def ini_options(config: pytest.Config) -> dict[str, Any]:
    """The options that stand in the ini file."""
    return _given(config.getini)


def _given(get: Callable[[str], Any]) -> dict[str, Any]:
    values = {option.name: get(option.dest) for option in OPTIONS}
    return {name: value for name, value in values.items() if value not in (None, [], False)}


def with_paths_joined(args: Sequence[str]) -> list[str]:
    """`--resume DIR` as `--resume=DIR`, for options that name a path.

    pytest finds its rootdir before it knows our options: a path that stands by itself is taken for the tests' place, if
    it exists. One that does not yet may by the time that an xdist worker looks.
    """
    joined: list[str] = []
    for word in args:
        if joined and (option := BY_NAME.get(joined[-1])) is not None and option.is_path and word[:1] != "-":
            joined[-1] = f"{joined[-1]}={word}"
        else:
            joined.append(word)
    return joined


def asks_for_sweep(typed: Typed) -> bool:
    """Whether anything is to be measured; until then the plugin does nothing."""
    return any(name in typed for name in ("--isl", "--osl", "--scenario", "--resume"))


def _usage(option: str, value: object, accepted: str) -> pytest.UsageError:
    return pytest.UsageError(f"{option}: {value!r} is not accepted; use {accepted}")


def _parse(option: Option, text: str, source: str) -> Any:
    try:
        return option.parse(text)
    except NotAcceptedError as error:
        shown = text.partition("=")[0] if option.names_only else text
        raise pytest.UsageError(f"{source}: {one_line(shown)[:60]!r} is not accepted: {error}") from None
    except (ValueError, KeyError):
        raise _usage(source, text, option.accepted) from None


def _parse_given(option: Option, raw: Any, source: str) -> Any:
    if option.flag:
        return bool(raw)
    if option.repeatable:
        return tuple(_parse(option, text, source) for text in raw)
    return _parse(option, raw, source)


def parse_options(typed: Typed, environ: Mapping[str, str], ini: Typed | None = None) -> dict[str, Any]:
    """Every option that has a value, parsed: as typed, else from its environment variable, else from the ini file.

    :raises pytest.UsageError: A value is not accepted.
    """
    values: dict[str, Any] = {}
    for option in OPTIONS:
        if option.name in typed:
            values[option.name] = _parse_given(option, typed[option.name], option.name)
        elif option.environment and environ.get(option.environment):
            values[option.name] = _parse(option, environ[option.environment], f"{option.environment} (environment)")
        elif ini and option.name in ini:
            values[option.name] = _parse_given(option, ini[option.name], f"{option.dest} (ini file)")
    if values.get("--mode") is Mode.SUBMIT and "--submit-team" not in values and environ.get(TEAM_VARIABLE, "").strip():
        # Only supplies a name: it never turns submission on.
        team = BY_NAME["--submit-team"]
        values[team.name] = _parse(team, environ[TEAM_VARIABLE], f"{TEAM_VARIABLE} (environment)")
    return values


def _scenarios_of(values: Mapping[str, Any]) -> tuple[Scenario, ...]:
    isl, osl, scenarios = (values.get(name) for name in ("--isl", "--osl", "--scenario"))
    if scenarios is not None:
        if isl is not None or osl is not None:
            raise pytest.UsageError("--scenario excludes --isl and --osl; type one or the other")
        return tuple(scenarios)
    if isl is None or osl is None:
        missing, given, value = ("--isl", "--osl", osl) if isl is None else ("--osl", "--isl", isl)
        raise pytest.UsageError(f"{given} {value} without {missing}; type both, as in: pytest --isl 1024 --osl 1024")
    return (Scenario(isl, osl),)


def _mode_of(values: Mapping[str, Any]) -> Mode:
    mode, team = values.get("--mode"), values.get("--submit-team")
    if team is not None and mode not in (None, Mode.SUBMIT):
        raise pytest.UsageError(f"--submit-team {team!r} implies --mode submit, but --mode {mode} was typed; drop one")
    if team is None and mode is Mode.SUBMIT:
        raise pytest.UsageError(f"--mode submit needs a team; type --submit-team NAME or set {TEAM_VARIABLE}")
    return Mode.SUBMIT if team is not None else mode or Mode.PERF


def _refuse_unsubmittable(values: Mapping[str, Any], scenarios: Sequence[Scenario]) -> None:
    """What mode submit could only find out after hours of measuring."""
    if not values.get("--accuracy", True):
        raise pytest.UsageError("--accuracy off is never submitted: a result needs its accuracy; drop one of both")
    if "--accuracy-limit" in values:
        raise pytest.UsageError(
            "--accuracy-limit is never submitted: a part of the accuracy task is not the task; drop one of both"
        )
    if problem := routing_problem(scenarios, values.get("--leaderboard-url")):
        raise pytest.UsageError(problem)


def _one_name(url: str) -> str:
    return url.replace("//localhost", "//127.0.0.1")


def _launch_of(values: Mapping[str, Any]) -> LaunchConfig:
    defaults = LaunchConfig()
    return LaunchConfig(
        recipe=values.get("--recipe"),
        server_args=values.get("--server-arg", ()),
        server_env=values.get("--server-env", ()),
        sglang_python=values.get("--sglang-python"),
        timeout_s=values.get("--launch-timeout", defaults.timeout_s),
        keep=values.get("--keep-server", defaults.keep),
    )


def make_config(values: Mapping[str, Any], typed: Typed, rootdir: Path) -> SweepConfig:
    """The sweep that parsed options ask for.

    :param typed: What was typed, to tell it from the environment.
    :param rootdir: What relative report folders are relative to.
    :raises pytest.UsageError: Options contradict each other.
    """
    scenarios, mode = _scenarios_of(values), _mode_of(values)
    if mode is Mode.SUBMIT:
        _refuse_unsubmittable(values, scenarios)
    engine = values.get("--engine", Engine.AUTO)
    urls = values.get("--server-url", ())
    launch = _launch_of(values)
    if urls and engine is not Engine.AUTO:
        raise pytest.UsageError(
            f"--engine {engine} starts a server of its own, --server-url {urls[0]} names one; drop one"
        )
    for place, url in enumerate(urls):
        if same := next((other for other in urls[:place] if _one_name(other) == _one_name(url)), None):
            raise pytest.UsageError(f"--server-url: {same} and {url} are one server; drop one")
    if launch.typed and (urls or engine is Engine.REFERENCE):
        serves = f"--server-url {urls[0]}" if urls else "--engine reference"
        raise pytest.UsageError(f"{launch.typed[0]} says how SGLang is launched, and {serves} launches none; drop one")
    if not values.get("--accuracy", True) and mode is Mode.ACC:
        raise pytest.UsageError("--mode acc measures accuracy only, --accuracy off leaves it out; drop one")
    if not values.get("--accuracy", True) and "--record-accuracy-baseline" in values:
        raise pytest.UsageError("--record-accuracy-baseline needs an accuracy, --accuracy off leaves it out; drop one")
    seed = values.get("--prompt-seed")
    return SweepConfig(
        scenarios=scenarios,
        concurrencies=values.get("--conc", CONCURRENCIES),
        mode=mode,
        engine=engine,
        server_urls=urls,
        launch=launch,
        print_launch=values.get("--print-launch", False),
        flush_cache=not values.get("--no-flush-cache", False),
        model=values.get("--model"),
        model_from_environment="--model" not in typed,
        tokenizer=values.get("--tokenizer"),
        vocab_size=values.get("--vocab-size"),
        port=values.get("--port", 8888),
        tp=values.get("--tp"),
        accuracy=values.get("--accuracy", True),
        accuracy_data=values.get("--accuracy-data"),
        accuracy_limit=values.get("--accuracy-limit"),
        accuracy_baseline=values.get("--accuracy-baseline"),
        record_accuracy_baseline=values.get("--record-accuracy-baseline"),
        num_prompts=values.get("--num-prompts"),
        random_range_ratio=values.get("--random-range-ratio", 1.0),
        # A fixed default would let a second session on the same server find the first one's prompts in its cache.
        prompt_seed=secrets.randbelow(2**32) if seed is None else seed,
        limits=LoadLimits(
            idle_timeout_s=values.get("--idle-timeout", 300.0), request_timeout_s=values.get("--request-timeout")
        ),
        reports_dir=rootdir / values.get("--reports-dir", Path("reports")),
        resume=values.get("--resume", ()),
        preflight=values.get("--preflight", False),
        team=values.get("--submit-team"),
        leaderboard_url=values.get("--leaderboard-url"),
        accept_schema=values.get("--accept-schema", False),
        submit_timeout_s=values.get("--submit-timeout", 300.0),
    )


def storable(values: Mapping[str, Any], scenario: Scenario) -> dict[str, Any]:
    """The options of one batch as JSON texts, which `resumed_values` reads back."""
    kept: dict[str, Any] = {"--isl": str(scenario.isl), "--osl": str(scenario.osl)}
    for name, value in values.items():
        if BY_NAME[name].stored and name not in ("--isl", "--osl", "--scenario"):
            kept[name] = _text(name, value)
    return kept


def _text(name: str, value: Any) -> Any:
    if name == "--accuracy":
        return "gate" if value else "off"
    if isinstance(value, bool):
        return value
    if BY_NAME[name].repeatable:
        return [str(item) for item in value]
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


#: What an option means that nobody typed, where a batch that does not have it can be asked for it.
_DEFAULTS: Mapping[str, Any] = {
    "--conc": CONCURRENCIES,
    "--mode": Mode.PERF,
    "--engine": Engine.AUTO,
    "--accuracy": True,
    "--port": 8888,
    "--random-range-ratio": 1.0,
}


def resumed_values(typed: Typed, stored: Mapping[Path, Typed]) -> dict[str, Any]:
    """The options of interrupted batches, one folder each, checked against what was typed beside --resume.

    :param stored: Folder to the options kept in it.
    :raises pytest.UsageError: A typed option contradicts a folder's, or folders contradict each other.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    scenarios: list[Scenario] = []
    for folder, texts in stored.items():
        values = parse_options(texts, {})
        scenario = _scenarios_of(values)[0]
        if scenario in scenarios:
            raise pytest.UsageError(f"--resume: {folder} is a second batch of ISL/OSL {scenario}; resume one at a time")
        scenarios.append(scenario)
        for name in (option.name for option in OPTIONS if option.stored and option.name not in ("--isl", "--osl")):
            if origin and values.get(name) != merged.get(name):
                raise pytest.UsageError(
                    f"--resume: {name} is {merged.get(name)!r} in {next(iter(origin.values()))} "
                    f"but {values.get(name)!r} in {folder}; resume them one at a time"
                )
            merged[name] = values.get(name)
        origin[str(folder)] = folder
    asked = parse_options(typed, {})
    if {"--isl", "--osl", "--scenario"} & asked.keys():
        asked_scenarios = _scenarios_of(asked)
        if set(asked_scenarios) != set(scenarios):
            raise pytest.UsageError(
                f"--resume: the folders hold ISL/OSL {', '.join(map(str, scenarios))}, "
                f"but {', '.join(map(str, asked_scenarios))} was typed; drop the lengths"
            )
    for name, value in asked.items():
        kept = merged.get(name)
        if not BY_NAME[name].stored or name in ("--isl", "--osl", "--scenario"):
            continue
        if value != (_DEFAULTS.get(name) if kept is None else kept):
            raise pytest.UsageError(
                f"{name}: {_text(name, value)!r} contradicts the resumed batch, which has "
                f"{'none' if kept is None else repr(_text(name, kept))}; drop it"
            )
    merged |= {name: value for name, value in asked.items() if not BY_NAME[name].stored}
    merged["--scenario"] = tuple(scenarios)
    return {name: value for name, value in merged.items() if value is not None and name not in ("--isl", "--osl")}


def environment() -> Mapping[str, str]:
    """The process's environment; looked at only once a sweep is asked for."""
    return os.environ
