"""Which leaderboard takes a scenario's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_dsr1.core.config import Scenario

#: The competition's Spaces, one per combination of lengths.
SPACES: Mapping[Scenario, str] = {
    scenario: f"https://daniehua-dsr1-fp4-sgl-isl{scenario.isl}osl{scenario.osl}.hf.space"
    for scenario in (Scenario(1024, 1024), Scenario(1024, 8192), Scenario(8192, 1024))
}
_PLACES = ("{isl}", "{osl}")


def leaderboard_for(scenario: Scenario, typed: str | None = None) -> str | None:
    """Base URL of the leaderboard; None if there is none for these lengths.

    :param typed: `--leaderboard-url`, in which `{isl}` and `{osl}` stand for the lengths.
    """
    if typed is None:
        return SPACES.get(scenario)
    for place, length in zip(_PLACES, (scenario.isl, scenario.osl), strict=True):
        typed = typed.replace(place, str(length))
    return typed


def routing_problem(scenarios: Sequence[Scenario], typed: str | None) -> str:
    """What is wrong with `--leaderboard-url` for these scenarios; empty if nothing.

    A row says nothing about its lengths, so results of two combinations on one leaderboard could not be told apart.
    """
    if typed is None or len({leaderboard_for(scenario, typed) for scenario in scenarios}) == len(scenarios):
        return ""
    return (
        f"--leaderboard-url {typed} is one leaderboard for {len(scenarios)} combinations of lengths, and a row does "
        "not say which it is of; write {isl} and {osl} where they stand in the URL, or run one combination at a time"
    )
