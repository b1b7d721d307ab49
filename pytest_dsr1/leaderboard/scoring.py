"""From rows to points: a ranking for each concurrency, and each team's total."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Weights of throughput per GPU, interactivity and median E2E latency in a score.
WEIGHTS = (0.5, 0.3, 0.2)
FIRST_POINTS = 1000
POINTS_PER_RANK = 100


@dataclass(frozen=True, kw_only=True)
class Row:
    """One submission, as far as it counts for the score.

    :param throughput: Tokens per second and GPU.
    :param e2e_ms: Median end-to-end latency in milliseconds.
    :param interactivity: Tokens per second and user; None where the row has none.
    """

    team: str
    conc: int
    throughput: float
    e2e_ms: float
    interactivity: float | None = None


@dataclass(frozen=True)
class Placed:
    """A team's best row at one concurrency.

    :param score: From 0 to 1; 1 means the best value in every figure.
    :param rank: From 1; equal scores have the same rank.
    """

    row: Row
    score: float
    rank: int

    @property
    def points(self) -> int:
        """1000 for rank 1, 100 fewer for each further rank, at least 0."""
        return max(0, FIRST_POINTS - POINTS_PER_RANK * (self.rank - 1))


@dataclass(frozen=True)
class Standing:
    """A team's total over all concurrencies.

    :param by_conc: Points by CONC.
    """

    rank: int
    team: str
    points: int
    by_conc: dict[int, int]


def scores(rows: Sequence[Row]) -> list[float]:
    """The score of each row of one concurrency, relative to the best figures there.

    0.5 throughput / best + 0.3 interactivity / best + 0.2 best E2E / E2E. If no row has interactivity, its weight is
    divided among the other two in proportion to theirs. If only some rows have it, the others get 0 for it.
    """
    known = [row.interactivity for row in rows if row.interactivity is not None]
    of_throughput, of_interactivity, of_e2e = WEIGHTS if known else _without_interactivity()
    throughput, e2e_ms = max(row.throughput for row in rows), min(row.e2e_ms for row in rows)
    interactivity = max(known, default=1.0)
    return [
        of_throughput * row.throughput / throughput
        + of_interactivity * (row.interactivity or 0.0) / interactivity
        + of_e2e * e2e_ms / row.e2e_ms
        for row in rows
    ]


def _without_interactivity() -> tuple[float, float, float]:
    throughput, _, e2e = WEIGHTS
    return throughput / (throughput + e2e), 0.0, e2e / (throughput + e2e)


def place(rows: Iterable[Row]) -> dict[int, list[Placed]]:
    """Each team's best row at each concurrency, best first."""
    by_conc: dict[int, list[Row]] = {}
    for row in rows:
        by_conc.setdefault(row.conc, []).append(row)
    return {conc: _placed(by_conc[conc]) for conc in sorted(by_conc)}


def _placed(rows: Sequence[Row]) -> list[Placed]:
    best: dict[str, tuple[float, Row]] = {}
    for score, row in zip(scores(rows), rows, strict=True):
        if row.team not in best or score > best[row.team][0]:
            best[row.team] = score, row
    # Rounded, because equal figures may give sums that differ in the last bit.
    ordered = sorted(best.values(), key=lambda one: (-round(one[0], 12), one[1].team))
    return [Placed(row, score, _rank(score, [other for other, _ in ordered])) for score, row in ordered]


def standings(placed: dict[int, list[Placed]]) -> list[Standing]:
    """All teams by their sum of points, best first; equal sums have the same rank."""
    points: dict[str, dict[int, int]] = {}
    for conc, entries in placed.items():
        for entry in entries:
            points.setdefault(entry.row.team, {})[conc] = entry.points
    totals = {team: sum(by_conc.values()) for team, by_conc in points.items()}
    return [
        Standing(_rank(totals[team], list(totals.values())), team, totals[team], points[team])
        for team in sorted(totals, key=lambda team: (-totals[team], team))
    ]


def _rank(value: float, values: Sequence[float]) -> int:
    return 1 + sum(round(other, 12) > round(value, 12) for other in values)
