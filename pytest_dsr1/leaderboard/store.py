"""The rows of a leaderboard of one's own: checked before they are kept, in SQLite, each once."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pytest_dsr1.core.config import Scenario
from pytest_dsr1.leaderboard.schema import B200_FIELDS, LABELS, Field
from pytest_dsr1.leaderboard.scoring import Row
from pytest_dsr1.leaderboard.teams import team_problem

#: Beyond it nobody measures.
MAX_CONC = 65536
#: How far a ratio may be from the quotient of its own figures: the predecessor's have six digits.
TOLERANCE = 1e-4
#: How far byte_perplexity may be from 2 ** bits_per_byte: published figures have four digits.
PERPLEXITY_TOLERANCE = 1e-3
#: What need not be known: B200 was not measured everywhere, and one generated token has no pace.
OPTIONAL = frozenset({*B200_FIELDS, Field.INTERACTIVITY})
_RATIOS = (
    (Field.E2E_RATIO, Field.E2E, Field.B200_E2E),
    (Field.THROUGHPUT_RATIO, Field.THROUGHPUT, Field.B200_THROUGHPUT),
    (Field.INTERACTIVITY_RATIO, Field.INTERACTIVITY, Field.B200_INTERACTIVITY),
)


def row_problem(values: Mapping[Field, object]) -> str:
    """Why a row is not taken; empty if it is. Gradio checks none of this."""
    for field, value in values.items():
        if problem := _value_problem(field, value):
            return f"{LABELS[field]}: {problem}"
    numbers = {field: value for field, value in values.items() if isinstance(value, int | float)}
    for ratio, ours, theirs in _RATIOS:
        if {ratio, ours, theirs} <= numbers.keys():
            quotient = numbers[ours] / numbers[theirs]
            if abs(numbers[ratio] / quotient - 1) > TOLERANCE:
                return f"{LABELS[ratio]}: {numbers[ratio]} is not {LABELS[ours]} / {LABELS[theirs]}, {quotient:.6g}"
    byte_perplexity = 2 ** min(numbers[Field.BITS_PER_BYTE], 1000.0)
    if abs(numbers[Field.BYTE_PERPLEXITY] / byte_perplexity - 1) > PERPLEXITY_TOLERANCE:
        return f"byte_perplexity: {numbers[Field.BYTE_PERPLEXITY]} is not 2 ** bits_per_byte, {byte_perplexity:.6g}"
    return ""


def _value_problem(field: Field, value: object) -> str:
    if field is Field.TEAM:
        return team_problem(value) if isinstance(value, str) else "a text is needed"
    if value is None:
        return "" if field in OPTIONAL else "a number is needed"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"a number is needed, not {type(value).__name__}"
    if not math.isfinite(value) or value <= 0:
        return f"{value} is no finite number above 0"
    if field is Field.CONC and (value != int(value) or value > MAX_CONC):
        return f"{value} is no whole number up to {MAX_CONC}"
    return ""


class Store:
    """Rows of any number of scenarios in one SQLite file, which several processes may share."""

    def __init__(self, path: Path) -> None:
        self._path = path
        kinds = {Field.TEAM: "TEXT", Field.CONC: "INTEGER"}
        columns = ", ".join(f"{field} {kinds.get(field, 'REAL')}" for field in Field)
        with self._connection() as connection:
            # Readers do not wait for a writer.
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
        """Keep a row that `row_problem` has nothing against; its number, and whether it is new.

        A row that is there already to the last digit is the same submission, sent again.
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
        """Everything that counts for `scenario`, oldest first."""
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
