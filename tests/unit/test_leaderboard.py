"""How an own leaderboard turns rows into points, and which rows it takes."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.core.config import Scenario
from pytest_dsr1.core.result import Result
from pytest_dsr1.leaderboard.__main__ import main
from pytest_dsr1.leaderboard.scoring import Row, place, scores, standings
from pytest_dsr1.leaderboard.store import Store, row_problem
from pytest_dsr1.submit.schema import Field, values_of
from tests.batches import SCENARIO, result_fields


def row(team: str = "T", conc: int = 4, throughput: float = 1.0, e2e_ms: float = 1.0, pace: float | None = 1.0) -> Row:
    return Row(team=team, conc=conc, throughput=throughput, e2e_ms=e2e_ms, interactivity=pace)


def test_score_is_the_weighted_sum_of_shares_of_the_best() -> None:
    """0.5 throughput / best + 0.3 interactivity / best + 0.2 best E2E / E2E."""
    found = scores([row(throughput=100, pace=50, e2e_ms=2000), row(throughput=80, pace=100, e2e_ms=1000)])
    assert found == pytest.approx([0.5 + 0.15 + 0.1, 0.4 + 0.3 + 0.2])


def test_without_interactivity_its_weight_is_shared_out() -> None:
    """The other two weights are 5 to 2."""
    found = scores([row(throughput=100, e2e_ms=2, pace=None), row(throughput=50, e2e_ms=1, pace=None)])
    assert found == pytest.approx([5 / 7 + 1 / 7, 5 / 14 + 2 / 7])


def test_leaving_interactivity_out_gains_nothing() -> None:
    """If other rows have it, a row without it gets 0 for it."""
    assert scores([row(), row(pace=None)]) == pytest.approx([1.0, 0.7])


def test_best_row_of_a_team_counts() -> None:
    """A worse row changes nothing, whenever it arrives."""
    placed = place([row("A", throughput=5), row("A", throughput=9), row("A", throughput=7), row("B", throughput=8)])
    assert [(one.row.team, one.row.throughput, one.rank, one.points) for one in placed[4]] == [
        ("A", 9, 1, 1000),
        ("B", 8, 2, 900),
    ]


def test_ties_share_a_rank_and_the_next_rank_is_skipped() -> None:
    """First, first, third."""
    placed = place([row("A"), row("B"), row("C", throughput=0.5)])
    assert [(one.row.team, one.rank, one.points) for one in placed[4]] == [
        ("A", 1, 1000),
        ("B", 1, 1000),
        ("C", 3, 800),
    ]


def test_points_end_at_zero() -> None:
    """Rank 11 and all below get none."""
    placed = place([row(f"{number:02}", throughput=100 - number) for number in range(13)])
    assert [one.points for one in placed[4]] == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100, 0, 0, 0]


def test_total_adds_up_concurrencies() -> None:
    """A team that submitted more of them has more points."""
    found = standings(place([row("A", 4), row("B", 4, 0.5), row("B", 8), row("C", 16)]))
    assert [(one.rank, one.team, one.points) for one in found] == [(1, "B", 1900), (2, "A", 1000), (2, "C", 1000)]
    assert found[0].by_conc == {4: 900, 8: 1000}
    assert standings(place([])) == []


FIGURES = st.floats(1e-3, 1e6)
ROWS = st.lists(
    st.builds(
        Row, team=st.sampled_from("ABC"), conc=st.just(4), throughput=FIGURES, e2e_ms=FIGURES, interactivity=FIGURES
    ),
    min_size=1,
    max_size=8,
)


@given(ROWS)
def test_scores_are_shares(rows: list[Row]) -> None:
    """Above 0 and at most 1; a row that is best in everything has score 1 and rank 1."""
    found = scores(rows)
    assert all(0 < score <= 1 + 1e-9 for score in found)
    best = row("D", 4, max(one.throughput for one in rows), min(one.e2e_ms for one in rows), 1e6)
    assert scores([*rows, best])[-1] == pytest.approx(1.0)
    assert place([*rows, best])[4][0].rank == 1


# -- rows -----------------------------------------------------------------------------------------------------


def values(**changed: Any) -> dict[Field, Any]:
    found: dict[Field, Any] = {**values_of(Result.from_fields(result_fields()), "Team")}
    return found | {Field(name): value for name, value in changed.items()}


def test_true_row_is_taken_and_so_is_one_without_a_baseline() -> None:
    """All our figures satisfy the leaderboard's checks; JSON may write 4 as 4.0."""
    assert row_problem(values()) == ""
    assert row_problem(values(conc=4.0)) == ""
    assert row_problem({field: None if "b200" in field else value for field, value in values().items()}) == ""


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"team": ""}, "Team Name: it is empty"),
        ({"team": 7}, "Team Name: Expected `str`"),
        ({"conc": 4.5}, "CONC: Expected"),
        ({"conc": True}, "CONC: Expected"),
        ({"conc": None}, "CONC: Expected"),
        ({"conc": 65537}, "CONC: Expected `float` <= 65536"),
        ({"median_e2el_ms": "15979.6"}, "E2E (median) (ms): Expected `float`, got `str`"),
        ({"tput_per_gpu": math.nan}, "Throughput per GPU (tokens/s): Expected"),
        ({"tput_per_gpu": math.inf}, "Throughput per GPU (tokens/s): Expected"),
        ({"tput_per_gpu": [1]}, "Throughput per GPU (tokens/s): Expected"),
        ({"tput_per_gpu": -1}, "Throughput per GPU (tokens/s): Expected `float` > 0"),
        ({"median_e2e_ratio_vs_b200_1126": 1.0}, "E2E Ratio: 1.0 is not E2E (median) (ms) / B200 E2E (median) (ms)"),
        ({"byte_perplexity": 1.5}, "byte_perplexity: 1.5 is not 2 ** bits_per_byte, 1.36"),
    ],
    ids=str,
)
def test_what_gradio_lets_through_is_refused(changed: dict[str, Any], problem: str) -> None:
    """Strings, null, NaN, infinity, lists, and figures that contradict each other."""
    assert problem in row_problem(values(**changed))


def test_row_is_kept_once(tmp_path: Path) -> None:
    """The same figures are the same submission; one different digit makes another."""
    store = Store(tmp_path / "rows.sqlite")
    assert store.add(SCENARIO, values()) == (1, True)
    assert store.add(SCENARIO, values()) == (1, False)
    assert store.add(SCENARIO, values(tput_per_gpu=1017.26123456789))[1]
    assert store.add(Scenario(8, 4), values())[1]
    again = Store(tmp_path / "rows.sqlite").rows(SCENARIO)
    assert [one.throughput for one in again] == [1017.2612345678901, 1017.26123456789]
    assert again[0] == row("Team", 4, 1017.2612345678901, 15983.587654321, 71.42857142857143)


# -- the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "1024", "0/4", "a/b", "8/4/2", "8/4,8/4"])
def test_scenario_that_is_no_scenario_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names option and value."""
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--scenario", text])
    assert caught.value.code == 2
    assert f"--scenario: {text!r}" in capsys.readouterr().err


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without Gradio or uvicorn the command says what to install."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert "pytest-dsr1[leaderboard]" in capsys.readouterr().err
