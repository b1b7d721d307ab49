"""Options to SweepConfig: precedence, defaults, and errors that name option, value and what is accepted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_dsr1.core.config import ALL_SCENARIOS, Engine, Mode, Point, Scenario, SweepConfig
from pytest_dsr1.options.reading import make_config, parse, resumed_values, to_texts
from pytest_dsr1.options.table import BY_NAME

LENGTHS = ("--isl", "8", "--osl", "4")


def typed(*args: str) -> dict[str, Any]:
    """What pytest's parser makes of a command line."""
    found: dict[str, Any] = {}
    words = iter(args)
    for word in words:
        option = BY_NAME[word]
        if option.is_flag:
            found[word] = True
        elif option.repeatable:
            found.setdefault(word, []).append(next(words))
        else:
            found[word] = next(words)
    return found


def config(*args: str, environ: Mapping[str, str] | None = None) -> SweepConfig:
    options = typed(*args)
    return make_config(parse(options, environ or {}), options, Path("/rootdir"))


def test_defaults() -> None:
    """Lengths alone ask for five concurrencies, accuracy and performance, on whoever serves."""
    made = config(*LENGTHS)
    assert made.points == tuple(Point(Scenario(8, 4), conc) for conc in (4, 8, 16, 32, 64))
    assert (made.mode, made.engine, made.accuracy, made.port) == (Mode.PERF, Engine.AUTO, True, 8888)
    assert made.reports_dir == Path("/rootdir/reports")


def test_all_scenarios_are_15_configurations() -> None:
    """`--scenario all` is the competition, scenario by scenario."""
    made = config("--scenario", "all")
    assert made.scenarios == ALL_SCENARIOS
    assert len(made.points) == 15


@pytest.mark.parametrize(("osl", "conc", "expected"), [(1024, 16, 800), (8192, 16, 320), (128, 64, 3200)])
def test_num_prompts_formula(osl: int, conc: int, expected: int) -> None:
    """CONC x 20 at OSL 8192, else CONC x 50."""
    point = Point(Scenario(1024, osl), conc)
    assert config("--isl", "1024", "--osl", str(osl)).num_prompts_at(point) == expected
    assert config("--isl", "1024", "--osl", str(osl), "--num-prompts", "7").num_prompts_at(point) == 7


def test_prompt_seed_differs_from_session_to_session() -> None:
    """Unless it is typed: a second session would find the first one's prompts in the server's cache."""
    assert len({config(*LENGTHS).prompt_seed for _ in range(4)}) > 1
    assert config(*LENGTHS, "--prompt-seed", "0").prompt_seed == 0


def test_environment_comes_after_the_command_line() -> None:
    """MODEL, PORT and TP count where nothing is typed."""
    environ = {"MODEL": "theirs", "PORT": "9000", "TP": "4"}
    made = config(*LENGTHS, "--port", "9001", environ=environ)
    assert (made.model, made.port, made.tp) == ("theirs", 9001, 4)
    assert made.model_from_environment
    assert not config(*LENGTHS, "--model", "mine", environ=environ).model_from_environment


def test_ini_file_comes_last() -> None:
    """Option, environment, ini file: in this order."""
    ini = {"--port": "7777", "--conc": "2"}
    assert parse({}, {"PORT": "6666"}, ini) == {"--port": 6666, "--conc": (2,)}
    assert parse({"--port": "5555"}, {"PORT": "6666"}, ini)["--port"] == 5555
    with pytest.raises(pytest.UsageError, match=r"dsr1_port \(ini file\): 'http' is not accepted"):
        parse({}, {}, {"--port": "http"})


def test_team_in_the_environment_does_not_submit() -> None:
    """TEAM_NAME_ENV only supplies a name where --mode submit was typed."""
    assert config(*LENGTHS, environ={"TEAM_NAME_ENV": "Team"}).mode is Mode.PERF
    named = config(*LENGTHS, "--mode", "submit", environ={"TEAM_NAME_ENV": " Team "})
    assert (named.mode, named.team) == (Mode.SUBMIT, " Team ")
    typed_too = config(*LENGTHS, "--mode", "submit", "--submit-team", "Typed", environ={"TEAM_NAME_ENV": "Team"})
    assert typed_too.team == "Typed"


@pytest.mark.parametrize("mode", [(), ("--mode", "submit")], ids=["implied", "typed"])
def test_team_asks_for_submission(mode: tuple[str, ...]) -> None:
    """--submit-team alone is enough, and the name is passed on as typed."""
    made = config(*LENGTHS, *mode, "--submit-team", ' it\'s "T" ')
    assert (made.mode, made.team) == (Mode.SUBMIT, ' it\'s "T" ')


def test_resumed_batch_keeps_team_and_leaderboard() -> None:
    """Wherever the name came from; another one typed beside --resume contradicts it."""
    environ = {"TEAM_NAME_ENV": "Team"}
    options = parse(typed(*LENGTHS, "--mode", "submit", "--leaderboard-url", "http://h:1"), environ)
    kept = to_texts(options, Scenario(8, 4))
    made = make_config(resumed_values({}, {Path("batch"): kept}), {}, Path("/rootdir"))
    assert (made.mode, made.team, made.leaderboard_url) == (Mode.SUBMIT, "Team", "http://h:1")
    with pytest.raises(pytest.UsageError, match="--submit-team: 'Other' contradicts the resumed batch"):
        resumed_values(typed("--submit-team", "Other"), {Path("batch"): kept})


@pytest.mark.parametrize(
    ("typed_url", "base"), [("http://h:1/", "http://h:1"), ("http://h:1/v1", "http://h:1"), ("https://h", "https://h")]
)
def test_server_url_is_a_base(typed_url: str, base: str) -> None:
    """A trailing slash or /v1 is no part of it."""
    assert config(*LENGTHS, "--server-url", typed_url).server_urls == (base,)


def test_what_asks_for_a_sweep() -> None:
    """Lengths or a batch to resume, and what only shows something."""
    starting = {name for name, option in BY_NAME.items() if option.starts_sweep}
    assert starting == {"--isl", "--osl", "--scenario", "--resume", "--preflight", "--print-launch"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--isl", "8"), "--isl 8 without --osl; type both"),
        (("--osl", "8"), "--osl 8 without --isl; type both"),
        (("--isl", "0", "--osl", "4"), "--isl: '0' is not accepted; use a whole number from 1"),
        (("--isl", "1k", "--osl", "4"), "--isl: '1k' is not accepted"),
        (("--isl", "8", "--scenario", "8/4"), "--scenario excludes --isl and --osl"),
        (("--scenario", "8x4"), "--scenario: '8x4' is not accepted; use ISL/OSL pairs"),
        (("--scenario", "8/4,8/4"), "--scenario: '8/4,8/4' is not accepted"),
        ((*LENGTHS, "--conc", "4,4"), "--conc: '4,4' is not accepted; use whole numbers from 1, each once"),
        ((*LENGTHS, "--conc", ""), "--conc: '' is not accepted"),
        ((*LENGTHS, "--mode", "fast"), "--mode: 'fast' is not accepted; use acc, perf or submit"),
        ((*LENGTHS, "--mode", "submit"), "--mode submit needs a team"),
        ((*LENGTHS, "--submit-team", ""), "--submit-team: '' is not accepted"),
        ((*LENGTHS, "--submit-team", "T", "--mode", "perf"), "--submit-team 'T' implies --mode submit"),
        ((*LENGTHS, "--submit-team", "a\nb"), "--submit-team: 'a b' is not accepted: it holds a line break"),
        ((*LENGTHS, "--submit-team", "x" * 10_240), "is not accepted: it has 10,240 characters, at most 200"),
        ((*LENGTHS, "--submit-team", "T", "--accuracy", "off"), "--accuracy off is never submitted"),
        ((*LENGTHS, "--submit-team", "T", "--accuracy-limit", "2"), "--accuracy-limit is never submitted"),
        ((*LENGTHS, "--submit-team", "T", "--leaderboard-url", "h"), "--leaderboard-url: 'h' is not accepted"),
        (
            ("--scenario", "8/4,4/8", "--submit-team", "T", "--leaderboard-url", "http://h"),
            "--leaderboard-url http://h is one leaderboard for 2 combinations",
        ),
        ((*LENGTHS, "--engine", "sglang", "--server-url", "http://a"), "--engine sglang starts a server of its own"),
        ((*LENGTHS, "--engine", "reference", "--recipe", "cpu"), "--recipe says how SGLang is launched"),
        (
            (*LENGTHS, "--server-url", "http://a", "--server-arg", "mem-fraction-static=0.9"),
            "--server-arg says how SGLang is launched",
        ),
        (
            (*LENGTHS, "--server-arg", "port=1"),
            "--server-arg: 'port' is not accepted: port is set by the plugin",
        ),
        (
            (*LENGTHS, "--server-env", "HF_TOKEN=hush"),
            "--server-env: 'HF_TOKEN' is not accepted: HF_TOKEN is the name",
        ),
        ((*LENGTHS, "--server-env", "A"), "--server-env: 'A' is not accepted: a variable is written NAME=VALUE"),
        ((*LENGTHS, "--launch-timeout", "0"), "--launch-timeout: '0' is not accepted; use a number of seconds"),
        ((*LENGTHS, "--engine", "vllm"), "--engine: 'vllm' is not accepted; use auto, sglang or reference"),
        (
            (*LENGTHS, "--server-url", "localhost:1"),
            "--server-url: 'localhost:1' is not accepted; use http(s)://HOST[:PORT]",
        ),
        ((*LENGTHS, "--server-url", "http://a@b"), "--server-url: 'http://a@b' is not accepted"),
        ((*LENGTHS, "--server-url", "http://a", "--server-url", "http://a/v1"), "http://a and http://a are one server"),
        (
            (*LENGTHS, "--server-url", "http://localhost:1", "--server-url", "http://127.0.0.1:1"),
            "--server-url: http://localhost:1 and http://127.0.0.1:1 are one server; drop one",
        ),
        ((*LENGTHS, "--port", "70000"), "--port: '70000' is not accepted; use a whole number from 1 to 65535"),
        ((*LENGTHS, "--random-range-ratio", "1.5"), "--random-range-ratio: '1.5' is not accepted"),
        ((*LENGTHS, "--random-range-ratio", "nan"), "--random-range-ratio: 'nan' is not accepted"),
        ((*LENGTHS, "--idle-timeout", "0"), "--idle-timeout: '0' is not accepted"),
        ((*LENGTHS, "--mode", "acc", "--accuracy", "off"), "--mode acc measures accuracy only"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_usage_error_names_option_value_and_what_is_accepted(args: tuple[str, ...], message: str) -> None:
    """Each mistake has its own sentence."""
    with pytest.raises(pytest.UsageError) as caught:
        config(*args)
    assert message in str(caught.value)


def test_bad_environment_says_that_it_is_the_environment() -> None:
    """A user who typed nothing must learn where the value stands."""
    with pytest.raises(pytest.UsageError, match=r"PORT \(environment\): 'http' is not accepted"):
        config(*LENGTHS, environ={"PORT": "http"})


STORED = (*LENGTHS, "--conc", "2,4", "--num-prompts", "9", "--accuracy", "off", "--server-url", "http://h:1")


def resumed(*args: str, stored: tuple[str, ...] = STORED) -> SweepConfig:
    kept = to_texts(parse(typed(*stored), {}), Scenario(8, 4))
    options = typed("--resume", "batch", *args)
    return make_config(resumed_values(options, {Path("batch"): kept}), options, Path("/rootdir"))


def test_resumed_batch_brings_its_options() -> None:
    """What was typed for the first session need not be typed again."""
    made, first = resumed(), config(*STORED)
    for name in ("scenarios", "concurrencies", "num_prompts", "accuracy", "server_urls"):
        assert getattr(made, name) == getattr(first, name)
    assert made.resume == (Path("batch"),)


def test_default_typed_is_no_contradiction() -> None:
    """What a batch has without having been asked may be asked for."""
    assert resumed("--mode", "perf", "--engine", "auto").mode is Mode.PERF


def test_same_option_again_is_no_contradiction() -> None:
    """Typing what the folder has is allowed."""
    assert resumed("--num-prompts", "9", *LENGTHS).num_prompts == 9


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--num-prompts", "8"), "--num-prompts: '8' contradicts the resumed batch, which has '9'"),
        (("--accuracy", "gate"), "--accuracy: 'gate' contradicts the resumed batch, which has 'off'"),
        (("--vocab-size", "99"), "--vocab-size: '99' contradicts the resumed batch, which has none"),
        (("--isl", "9", "--osl", "4"), "the folders hold ISL/OSL 8/4, but 9/4 was typed"),
    ],
    ids=["value", "switch", "new", "lengths"],
)
def test_contradiction_is_a_usage_error(args: tuple[str, ...], message: str) -> None:
    """A resumed batch is one measurement: it cannot be half of another."""
    with pytest.raises(pytest.UsageError) as caught:
        resumed(*args)
    assert message in str(caught.value)


def test_resumed_batches_must_agree_with_each_other() -> None:
    """Several folders are resumed in one session only if they were measured alike."""
    kept = to_texts(parse(typed(*STORED), {}), Scenario(8, 4))
    other = kept | {"--osl": "5", "--num-prompts": "3"}
    with pytest.raises(pytest.UsageError, match="--num-prompts is 9 in one but 3 in two"):
        resumed_values({}, {Path("one"): kept, Path("two"): other})
