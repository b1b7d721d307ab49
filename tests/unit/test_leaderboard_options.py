"""Which leaderboard takes results, and what is refused before a sweep."""

from __future__ import annotations

import pytest

from pytest_dsr1.core.config import (
    ALL_SCENARIOS,
    MAX_TEAM,
    Scenario,
    SweepConfig,
    leaderboard_for,
    routing_problem,
    team_problem,
)
from pytest_dsr1.core.server import server_problem


def test_competition_has_three_spaces() -> None:
    """Each combination of lengths has its own; all others have none."""
    assert leaderboard_for(Scenario(1024, 8192)) == "https://daniehua-dsr1-fp4-sgl-isl1024osl8192.hf.space"
    assert len({leaderboard_for(scenario) for scenario in ALL_SCENARIOS}) == 3
    assert leaderboard_for(Scenario(128, 128)) is None


def test_typed_url_overrides_and_may_name_the_lengths() -> None:
    """One URL takes several combinations only if it names their lengths."""
    assert leaderboard_for(Scenario(16, 32), "http://h:1") == "http://h:1"
    assert leaderboard_for(Scenario(16, 32), "http://h/isl{isl}osl{osl}") == "http://h/isl16osl32"
    assert routing_problem(ALL_SCENARIOS, "http://h/isl{isl}osl{osl}") == ""
    assert routing_problem(ALL_SCENARIOS[:1], "http://h") == ""
    problem = routing_problem(ALL_SCENARIOS, "http://h")
    assert all(word in problem for word in ("--leaderboard-url http://h", "3", "{isl}", "{osl}"))


@pytest.mark.parametrize(
    "name", ["Team", ' it\'s "quoted" ', "🏴‍☠️ 👩‍💻", "$(reboot); `id`", "Tëam 团队", "x" * MAX_TEAM]
)
def test_name_is_accepted(name: str) -> None:
    """Quotes, emoji and shell commands are names like any other."""
    assert team_problem(name) == ""


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "it is empty"),
        (" \t", "it is empty"),
        ("a\nb", "line break"),
        ("a\r", "line break"),
        ("a\x1b[31m", "U+001B"),
        ("x" * 10_240, "it has 10,240 characters, at most 200"),
        ("\udcff", "not UTF-8"),
        ("a\u2028b", "U+2028"),
    ],
    ids=["empty", "blank", "newline", "return", "escape", "10 kB", "bytes", "separator"],
)
def test_name_is_refused_before_anything_runs(name: str, problem: str) -> None:
    """A name that a table cannot show is refused, not changed."""
    assert problem in team_problem(name)


@pytest.mark.parametrize(
    ("url", "reference", "gpus_known", "problem"),
    [
        (None, True, True, "X, since Y"),
        ("http://10.0.0.1", True, True, "pytest-dsr1 leaderboard serve"),
        ("http://127.0.0.1:1", True, True, ""),
        (None, False, True, ""),
        (None, False, False, "--tp N"),
    ],
)
def test_server_is_looked_at_before_the_run(url: str | None, reference: bool, gpus_known: bool, problem: str) -> None:
    """What could not be submitted is not measured."""
    config = SweepConfig(scenarios=ALL_SCENARIOS[:1], leaderboard_url=url)
    found = server_problem(config, "X, since Y", reference=reference, gpus_known=gpus_known)
    assert problem in found
    assert bool(found) == bool(problem)
