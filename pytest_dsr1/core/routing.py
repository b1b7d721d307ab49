"""Where results may be submitted, and under which team name.

In the core, because options and preflight check it before a sweep.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from pytest_dsr1.core.config import ALL_SCENARIOS, Scenario, SweepConfig
from pytest_dsr1.core.server import is_loopback

#: The competition's Spaces, one for each of its scenarios.
SPACES: Mapping[Scenario, str] = {
    scenario: f"https://daniehua-dsr1-fp4-sgl-isl{scenario.isl}osl{scenario.osl}.hf.space" for scenario in ALL_SCENARIOS
}
#: Most characters of a team name: the leaderboard's table has no room for more.
MAX_TEAM = 200


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


def server_problem(config: SweepConfig, why: str, *, reference: bool, gpus_known: bool) -> str:
    """Why no result of this server could be submitted; empty if it could.

    :param why: Which server was chosen, and the reason.
    :param reference: Whether it is the reference engine.
    """
    urls = [leaderboard_for(scenario, config.leaderboard_url) for scenario in config.scenarios]
    if reference and not all(url is not None and is_loopback(url) for url in urls):
        return (
            f"mode submit, but served by {why}: results of the reference engine are only sent to a leaderboard on this "
            "machine; name the server to be measured with --server-url, or rehearse with --leaderboard-url "
            "http://127.0.0.1:PORT (start a leaderboard with: pytest-dsr1 leaderboard serve)"
        )
    if not gpus_known:
        return "mode submit needs a throughput per GPU, and the server does not say how many GPUs it has; type --tp N"
    return ""


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
