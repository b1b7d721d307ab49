"""A leaderboard's rows: checked, then stored once each, in SQLite."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pytest_dsr1.core.config import Scenario, team_problem
from pytest_dsr1.leaderboard.scoring import Row
from pytest_dsr1.submit.schema import B200_FIELDS, Field

#: Largest concurrency that is taken; far above what anybody measures.
MAX_CONC = 65536
#: Largest relative difference between a ratio and the quotient of its figures. The predecessor sends six digits.
RATIO_TOLERANCE = 1e-4
#: Largest relative difference between byte_perplexity and 2 ** bits_per_byte. Published figures have four digits.
PERPLEXITY_TOLERANCE = 1e-3
#: Figures that a result may lack: B200 was not measured everywhere, and a single generated token has no interactivity.
OPTIONAL = frozenset({*B200_FIELDS, Field.INTERACTIVITY})
_RATIOS = (
    (Field.E2E_RATIO, Field.E2E, Field.B200_E2E),
    (Field.THROUGHPUT_RATIO, Field.THROUGHPUT, Field.B200_THROUGHPUT),
    (Field.INTERACTIVITY_RATIO, Field.INTERACTIVITY, Field.B200_INTERACTIVITY),
)
# The upper bound excludes infinity.
_FIGURE = Annotated[float, msgspec.Meta(gt=0, le=sys.float_info.max)]
_TYPES: Mapping[Field, Any] = {
    **{field: _FIGURE | None if field in OPTIONAL else _FIGURE for field in Field},
    Field.TEAM: str,
    # A whole number, which JSON may write as 4.0.
    Field.CONC: Annotated[float, msgspec.Meta(gt=0, le=MAX_CONC, multiple_of=1)],
}


def row_problem(values: Mapping[Field, object]) -> str:
    """Why a row is not taken; empty if it is. Gradio itself checks none of this."""
    for field, value in values.items():
        try:
            msgspec.convert(value, _TYPES[field])
        except msgspec.ValidationError as error:
            return f"{field.label}: {error}"
    if problem := team_problem(str(values[Field.TEAM])):
        return f"{Field.TEAM.label}: {problem}"
    numbers = {field: value for field, value in values.items() if isinstance(value, int | float)}
    for ratio, ours, b200 in _RATIOS:
        if {ratio, ours, b200} <= numbers.keys():
            quotient = numbers[ours] / numbers[b200]
            if abs(numbers[ratio] / quotient - 1) > RATIO_TOLERANCE:
                return f"{ratio.label}: {numbers[ratio]} is not {ours.label} / {b200.label}, {quotient:.6g}"
    byte_perplexity = 2 ** min(numbers[Field.BITS_PER_BYTE], 1000.0)
    if abs(numbers[Field.BYTE_PERPLEXITY] / byte_perplexity - 1) > PERPLEXITY_TOLERANCE:
        return f"byte_perplexity: {numbers[Field.BYTE_PERPLEXITY]} is not 2 ** bits_per_byte, {byte_perplexity:.6g}"
    return ""


class Store:
    """Rows of any number of scenarios in one SQLite file; processes may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        kinds = {Field.TEAM: "TEXT", Field.CONC: "INTEGER"}
        columns = ", ".join(f"{field} {kinds.get(field, 'REAL')}" for field in Field)
        with self._connection() as connection:
            # With a write-ahead log, readers do not wait for a writer.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS submissions (id INTEGER PRIMARY KEY, time REAL NOT NULL, "
                f"isl INTEGER NOT NULL, osl INTEGER NOT NULL, digest TEXT NOT NULL UNIQUE, {columns})"
            )

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=30.0)
        try:
            with connection:
                yield connection
        finally:
            connection.close()

    def add(self, scenario: Scenario, values: Mapping[Field, object]) -> tuple[int, bool]:
        """Store a row that passed `row_problem`; returns its number and whether it is new.

        A row whose values are all stored already, to the last digit, is the same submission sent again.
        """
        named = {str(field): value for field, value in values.items() if value is not None}
        content = json.dumps([scenario.isl, scenario.osl, named], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()
        row = {"time": time.time(), "isl": scenario.isl, "osl": scenario.osl, "digest": digest, **named}
        places = ", ".join(f":{name}" for name in row)
        with self._connection() as connection:
            added = connection.execute(
                f"INSERT OR IGNORE INTO submissions ({', '.join(row)}) VALUES ({places})", row
            ).rowcount
            found = connection.execute("SELECT id FROM submissions WHERE digest = ?", (digest,)).fetchone()
        return int(found[0]), bool(added)

    def rows(self, scenario: Scenario) -> list[Row]:
        """All rows of `scenario`, as far as they count for its score, oldest first."""
        names: Sequence[Field] = (Field.TEAM, Field.CONC, Field.THROUGHPUT, Field.E2E, Field.INTERACTIVITY)
        with self._connection() as connection:
            found = connection.execute(
                f"SELECT {', '.join(names)} FROM submissions WHERE isl = ? AND osl = ? ORDER BY id",
                (scenario.isl, scenario.osl),
            ).fetchall()
        return [
            Row(team=team, conc=int(conc), throughput=throughput, e2e_ms=e2e_ms, interactivity=interactivity)
            for team, conc, throughput, e2e_ms, interactivity in found
        ]
