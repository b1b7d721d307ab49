"""How rows become points: one lap of a competition per concurrency, and the sum over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Of throughput per GPU, interactivity and median E2E latency.
WEIGHTS = (0.5, 0.3, 0.2)
FIRST_POINTS = 1000
POINTS_PER_RANK = 100


@dataclass(frozen=True, kw_only=True)
class Row:
    """One submission, as far as it counts.

    :param interactivity: Tokens per second and user; None where the leaderboard does not ask for it.
    """

    team: str
    conc: int
    throughput: float
    e2e_ms: float
    interactivity: float | None = None


@dataclass(frozen=True)
class Placed:
    """A team's best row at one concurrency.

    :param score: From 0 to 1; 1 is best in everything.
    :param rank: From 1; equal scores share one.
    """

    row: Row
    score: float
    rank: int

    @property
    def points(self) -> int:
        return max(0, FIRST_POINTS - POINTS_PER_RANK * (self.rank - 1))


@dataclass(frozen=True)
class Standing:
    """A team over all concurrencies."""

    rank: int
    team: str
    points: int
    by_conc: dict[int, int]


def scores(rows: Sequence[Row]) -> list[float]:
    """Score each row of one concurrency by the best figures among them.

    0.5 throughput / best + 0.3 interactivity / best + 0.2 best E2E / E2E. Where no row has interactivity, the other
    weights share its weight in proportion; a row that lacks what others have gets nothing for it.
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
    # Two rows with the same figures may differ in the last bit of their sums.
    ordered = sorted(best.values(), key=lambda one: (-round(one[0], 12), one[1].team))
    return [Placed(row, score, _rank(score, [other for other, _ in ordered])) for score, row in ordered]


def standings(placed: dict[int, list[Placed]]) -> list[Standing]:
    """Every team by its sum of points, best first; equal sums share a rank."""
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
