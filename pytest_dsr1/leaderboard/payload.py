"""A result becomes the values that a leaderboard takes, or the reason why it cannot."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_dsr1.core.result import Result
from pytest_dsr1.leaderboard.schema import LABELS, Field, Schema

#: Where a result keeps what is not at its top.
_INSIDE = {
    Field.B200_E2E: "b200_baseline_nv1126",
    Field.B200_THROUGHPUT: "b200_baseline_nv1126",
    Field.B200_INTERACTIVITY: "b200_baseline_nv1126",
    Field.BITS_PER_BYTE: "accuracy",
    Field.BYTE_PERPLEXITY: "accuracy",
    Field.WORD_PERPLEXITY: "accuracy",
}


class PayloadError(ValueError):
    """A value that a leaderboard needs is not there, or is none that may be sent."""


@dataclass(frozen=True)
class Entry:
    """What we know of one result, by field: what is sent to any leaderboard is taken from here.

    :param values: A field that the result does not have is absent.
    """

    values: Mapping[Field, str | int | float]

    @property
    def conc(self) -> int:
        return int(self.values[Field.CONC])

    def key(self, url: str) -> str:
        """Of this entry on the leaderboard at `url`; the same for the same figures, however the inputs are ordered."""
        content = json.dumps([url, sorted((str(field), value) for field, value in self.values.items())])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def data(self, schema: Schema) -> list[str | int | float | None]:
        """The values in the order of `schema`.

        :raises PayloadError: One is missing that must be there.
        """
        missing = [
            LABELS[field]
            for place, field in enumerate(schema.fields)
            if field not in self.values and not schema.may_be_empty(place)
        ]
        if missing:
            why = ": no B200 baseline is known for these lengths" if any("B200" in label for label in missing) else ""
            raise PayloadError(f"the leaderboard needs {', '.join(missing)}, which the result lacks{why}")
        return [self.values.get(field) for field in schema.fields]


def make_entry(result: Result, team: str) -> Entry:
    """What `result` says, in full precision.

    :raises PayloadError: Something in it is not a finite number.
    """
    conc = result.fields.get("benchmark_args", {}).get("max_concurrency")
    if not isinstance(conc, int) or isinstance(conc, bool) or conc < 1:
        raise PayloadError(f"its concurrency is {conc!r}, not a whole number from 1")
    values: dict[Field, str | int | float] = {Field.TEAM: team, Field.CONC: conc}
    for field in Field:
        if field in values:
            continue
        place: Any = result.fields.get(_INSIDE[field], {}) if field in _INSIDE else result.fields
        value = place.get(field) if isinstance(place, Mapping) else None
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise PayloadError(f"{LABELS[field]} is {value!r}, not a finite number above 0")
        values[field] = value
    return Entry(values)
