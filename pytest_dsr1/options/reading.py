"""From command line, environment and ini file to one SweepConfig."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from pytest_dsr1.core.config import Engine, Mode, Scenario, SweepConfig, routing_problem
from pytest_dsr1.core.text import one_line
from pytest_dsr1.options.kinds import NotAcceptedError
from pytest_dsr1.options.table import BY_NAME, OPTIONS, Option

#: Option name to its text, to the texts of a repeatable option, or to True for a flag.
Texts = Mapping[str, Any]
#: Option name to its value.
Values = Mapping[str, Any]
#: Environment variable with the team for --mode submit without --submit-team. The predecessor has it, too.
TEAM_VARIABLE = "TEAM_NAME_ENV"


def typed_options(config: pytest.Config) -> dict[str, Any]:
    """The options of the command line."""
    return _given(lambda dest: getattr(config.option, dest, None))


def ini_options(config: pytest.Config) -> dict[str, Any]:
    """The options of the ini file."""
    return _given(config.getini)


def _given(get: Callable[[str], Any]) -> dict[str, Any]:
    values = {option.name: get(option.dest) for option in OPTIONS}
    return {name: value for name, value in values.items() if value not in (None, [], False)}


def parse(typed: Texts, environ: Mapping[str, str], ini: Texts | None = None) -> dict[str, Any]:
    """The values of the options on the command line, in the environment or ini file.

    :raises pytest.UsageError: A value is not accepted.
    """
    values: dict[str, Any] = {}
    for option in OPTIONS:
        if option.name in typed:
            values[option.name] = _parse(option, typed[option.name], option.name)
        elif option.environment and environ.get(option.environment):
            values[option.name] = _parse(option, environ[option.environment], f"{option.environment} (environment)")
        elif ini and option.name in ini:
            values[option.name] = _parse(option, ini[option.name], f"{option.dest} (ini file)")
    if values.get("--mode") is Mode.SUBMIT and "--submit-team" not in values and environ.get(TEAM_VARIABLE, "").strip():
        # It only supplies a name, and never turns submission on.
        team = BY_NAME["--submit-team"]
        values[team.name] = _parse(team, environ[TEAM_VARIABLE], f"{TEAM_VARIABLE} (environment)")
    return values


def _parse(option: Option, given: Any, source: str) -> Any:
    if option.is_flag:
        return option.sets
    if option.repeatable:
        return tuple(_parse_text(option, text, source) for text in given)
    return _parse_text(option, given, source)


def _parse_text(option: Option, text: str, source: str) -> Any:
    try:
        return option.kind.parse(text)
    except NotAcceptedError as error:
        shown = text.partition("=")[0] if option.names_only else text
        raise pytest.UsageError(f"{source}: {one_line(shown)[:60]!r} is not accepted: {error}") from None
    except (ValueError, KeyError):
        raise pytest.UsageError(f"{source}: {text!r} is not accepted; use {option.kind.accepted}") from None


# -- one configuration ------------------------------------------------------------------------------------------------


def make_config(values: Values, typed: Texts, rootdir: Path) -> SweepConfig:
    """The configuration that parsed options give.

    :param typed: The options of the command line, to tell them from the environment.
    :param rootdir: The folder that a relative --reports-dir is relative to.
    :raises pytest.UsageError: Options contradict each other.
    """
    config = replace(
        _placed(SweepConfig(scenarios=_scenarios_of(values)), values),
        mode=_mode_of(values),
        model_from_environment="--model" not in typed,
        # A fixed default would let a second session on the same server find the first one's prompts in its cache.
        prompt_seed=values.get("--prompt-seed", secrets.randbelow(2**32)),
    )
    config = replace(config, reports_dir=rootdir / config.reports_dir)
    _refuse_contradictions(config)
    return config


def _placed(config: SweepConfig, values: Values) -> SweepConfig:
    """`config` with each value in the attribute that its option names."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if place := BY_NAME[name].attribute:
            outer, _, inner = place.rpartition(".")
            nested.setdefault(outer, {})[inner] = value
    top = nested.pop("", {})
    return replace(config, **top, **{name: replace(getattr(config, name), **inner) for name, inner in nested.items()})


def _scenarios_of(values: Values) -> tuple[Scenario, ...]:
    isl, osl, scenarios = (values.get(name) for name in ("--isl", "--osl", "--scenario"))
    if scenarios is not None:
        if isl is not None or osl is not None:
            raise pytest.UsageError("--scenario excludes --isl and --osl; type one or the other")
        return tuple(scenarios)
    if isl is None and osl is None:
        return ()
    if isl is None or osl is None:
        missing, given, value = ("--isl", "--osl", osl) if isl is None else ("--osl", "--isl", isl)
        raise pytest.UsageError(f"{given} {value} without {missing}; type both, as in: pytest --isl 1024 --osl 1024")
    return (Scenario(isl, osl),)


def _mode_of(values: Values) -> Mode:
    mode, team = values.get("--mode"), values.get("--submit-team")
    if team is not None and mode not in (None, Mode.SUBMIT):
        raise pytest.UsageError(f"--submit-team {team!r} implies --mode submit, but --mode {mode} was typed; drop one")
    if team is None and mode is Mode.SUBMIT:
        raise pytest.UsageError(f"--mode submit needs a team; type --submit-team NAME or set {TEAM_VARIABLE}")
    return Mode.SUBMIT if team is not None else mode or Mode.PERF


def _refuse_contradictions(config: SweepConfig) -> None:
    launch, urls = config.launch, config.server_urls
    if config.mode is Mode.SUBMIT:
        # Found now, and not after hours of measuring.
        if not config.accuracy:
            raise pytest.UsageError("--accuracy off is never submitted: a result needs its accuracy; drop one of both")
        if config.accuracy_limit is not None:
            raise pytest.UsageError(
                "--accuracy-limit is never submitted: a part of the accuracy task is not the task; drop one of both"
            )
        if problem := routing_problem(config.scenarios, config.leaderboard_url):
            raise pytest.UsageError(problem)
    if urls and config.engine is not Engine.AUTO:
        raise pytest.UsageError(
            f"--engine {config.engine} starts a server of its own, --server-url {urls[0]} names one; drop one"
        )
    hosts = [url.replace("//localhost", "//127.0.0.1") for url in urls]
    for place, host in enumerate(hosts):
        if (first := hosts.index(host)) != place:
            raise pytest.UsageError(f"--server-url: {urls[first]} and {urls[place]} are one server; drop one")
    if launch.typed and (urls or config.engine is Engine.REFERENCE):
        serves = f"--server-url {urls[0]}" if urls else "--engine reference"
        raise pytest.UsageError(f"{launch.typed[0]} says how SGLang is launched, and {serves} launches none; drop one")
    if not config.accuracy and config.mode is Mode.ACC:
        raise pytest.UsageError("--mode acc measures accuracy only, --accuracy off leaves it out; drop one")
    if not config.accuracy and config.record_accuracy_baseline is not None:
        raise pytest.UsageError("--record-accuracy-baseline needs an accuracy, --accuracy off leaves it out; drop one")


# -- a batch that is resumed ------------------------------------------------------------------------------------------

#: Options for the scenario, which a batch folder stores separately.
_LENGTHS = ("--isl", "--osl", "--scenario")
_STORED = tuple(option for option in OPTIONS if option.stored and option.name not in _LENGTHS)


def to_texts(values: Values, scenario: Scenario) -> dict[str, Any]:
    """The options of one batch as JSON texts, which `resumed_values` reads back."""
    kept: dict[str, Any] = {"--isl": str(scenario.isl), "--osl": str(scenario.osl)}
    return kept | {option.name: _to_text(option, values[option.name]) for option in _STORED if option.name in values}


def _to_text(option: Option, value: Any) -> Any:
    if option.is_flag:
        return True
    if option.repeatable:
        return [str(item) for item in value]
    if isinstance(value, bool):
        return "gate" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def resumed_values(typed: Texts, stored: Mapping[Path, Texts]) -> dict[str, Any]:
    """The options of interrupted batches, with those that were typed.

    :param stored: Batch folder to the options kept in it.
    :raises pytest.UsageError: A typed option contradicts a folder's, or folders contradict each other.
    """
    batches = {folder: parse(texts, {}) for folder, texts in stored.items()}
    first, kept = next(iter(batches.items()))
    scenarios: list[Scenario] = []
    for folder, values in batches.items():
        (scenario,) = _scenarios_of(values)
        if scenario in scenarios:
            raise pytest.UsageError(f"--resume: {folder} is a second batch of ISL/OSL {scenario}; resume one at a time")
        scenarios.append(scenario)
        for name in (option.name for option in _STORED):
            if values.get(name) != kept.get(name):
                raise pytest.UsageError(
                    f"--resume: {name} is {kept.get(name)!r} in {first} but {values.get(name)!r} in {folder}; "
                    "resume them one at a time"
                )
    asked = parse(typed, {})
    if asked.keys() & set(_LENGTHS) and set(_scenarios_of(asked)) != set(scenarios):
        raise pytest.UsageError(
            f"--resume: the folders hold ISL/OSL {', '.join(map(str, scenarios))}, "
            f"but {', '.join(map(str, _scenarios_of(asked)))} was typed; drop the lengths"
        )
    defaults = SweepConfig(scenarios=())
    for option in _STORED:
        if option.name not in asked:
            continue
        default = attrgetter(option.attribute)(defaults) if option.attribute else None
        if asked[option.name] != kept.get(option.name, default):
            has = repr(_to_text(option, kept[option.name])) if option.name in kept else "none"
            value = _to_text(option, asked[option.name])
            raise pytest.UsageError(f"{option.name}: {value!r} contradicts the resumed batch, which has {has}; drop it")
    values = {name: value for name, value in kept.items() if name not in _LENGTHS}
    values |= {name: value for name, value in asked.items() if not BY_NAME[name].stored}
    return values | {"--scenario": tuple(scenarios)}
