"""The inputs of a leaderboard, and a result's values for them.

Gradio drops surplus values and reports success, and stores values in the order in which they arrive. Therefore both the
number of inputs and their labels are compared with ours before anything is sent.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import TypeAlias

from pytest_dsr1.core.result import Result
from pytest_dsr1.core.text import one_line


class Field(StrEnum):
    """One value of a row, by its name in results and in our leaderboard's database.

    The members are in the order in which the predecessor posts them.

    :ivar label: Its label on our own leaderboard; error messages use it too.
    """

    label: str

    # The label has a default because `Field(name)` looks a member up.
    def __new__(cls, name: str, label: str = "") -> Field:
        field = str.__new__(cls, name)
        field._value_, field.label = name, label
        return field

    TEAM = "team", "Team Name"
    CONC = "conc", "CONC"
    E2E = "median_e2el_ms", "E2E (median) (ms)"
    THROUGHPUT = "tput_per_gpu", "Throughput per GPU (tokens/s)"
    B200_E2E = "b200_median_e2e_1126", "B200 E2E (median) (ms)"
    B200_THROUGHPUT = "b200_tput_pergpu_1126", "B200 Throughput per GPU (tokens/s)"
    E2E_RATIO = "median_e2e_ratio_vs_b200_1126", "E2E Ratio"
    THROUGHPUT_RATIO = "tput_per_gpu_ratio_vs_b200_1126", "Throughput Ratio"
    INTERACTIVITY = "interactivity", "Interactivity (tokens/s/user)"
    B200_INTERACTIVITY = "b200_median_intvty_1126", "B200 Interactivity (tokens/s/user)"
    INTERACTIVITY_RATIO = "interactivity_ratio_vs_b200_1126", "Interactivity Ratio"
    BITS_PER_BYTE = "bits_per_byte", "bits_per_byte"
    BYTE_PERPLEXITY = "byte_perplexity", "byte_perplexity"
    WORD_PERPLEXITY = "word_perplexity", "word_perplexity"


#: The values of one row; a value that the result does not have is absent.
Values: TypeAlias = Mapping[Field, str | int | float]
#: The same in the order of a leaderboard's inputs; None for an input that stays empty.
Row: TypeAlias = list[str | int | float | None]

FIELDS_14 = tuple(Field)
#: Fields and order of the competition's Spaces; assumed for a leaderboard that cannot be asked.
FIELDS_11 = tuple(field for field in Field if "Interactivity" not in field.label)
#: A result has these only where a B200 figure is published.
B200_FIELDS = frozenset(field for field in Field if "b200" in field)
#: The endpoint that every one of these leaderboards has.
API_NAME = "submit_results"
#: A label that ends so says that its input may be left empty.
IF_KNOWN = ", if known"

_SYNONYMS = {
    "concurrency": "conc",
    "tput": "throughput",
    "intvty": "interactivity",
    "ppl": "perplexity",
    "bpb": "bits byte",
    "tputpergpu": "throughput gpu",
    "gpus": "gpu",
    "baseline": "b200",
}
#: Units, and words that do not change which field a label names. A label with one of the AMD devices means our figure.
_SILENT_WORDS = (
    "name the a in of to is per our ours mine higher lower better "
    "median p50 50th percentile latency time level wikitext user users "
    "ms milliseconds s sec second seconds tokens token tok nv nvidia amd mi300x mi325x mi350x mi355x"
)


def _telling_words(label: str) -> frozenset[str]:
    """The words of a label that decide which field it names."""
    text = unicodedata.normalize("NFKC", label).lower().removesuffix(IF_KNOWN)
    text = re.sub(r"end[\s_-]*to[\s_-]*end", "e2e", text)
    words = {part for word in re.findall(r"[^\W_]+", text) for part in _SYNONYMS.get(word, word).split()}
    if "ratio" in words:
        # A ratio names both sides: "E2E Ratio (MI355X vs B200)".
        words -= {"b200", "vs", "over", "gpu"}
    elif "throughput" not in words:
        # A throughput may be that of the whole machine, unless the label says that it is per GPU.
        words.discard("gpu")
    return frozenset(words.difference(_SILENT_WORDS.split()))


_FIELD_OF = {_telling_words(field.label): field for field in Field}


def recognise(label: str) -> Field | None:
    """The field that a label names; None where that is not certain."""
    return _FIELD_OF.get(_telling_words(label))


@dataclass(frozen=True)
class Schema:
    """Which field goes into which input of a leaderboard.

    :param fields: One for each input, in the leaderboard's order.
    :param labels: The leaderboard's labels.
    :param unknown: Labels that were not recognised. Their fields follow from their position, and the user has to accept
        that.
    """

    fields: tuple[Field, ...]
    labels: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[Field, ...]:
        """The fields whose inputs may not be left empty."""
        pairs = zip(self.fields, self.labels, strict=True)
        return tuple(field for field, label in pairs if not label.lower().endswith(IF_KNOWN))

    def row(self, values: Values) -> Row:
        """`values` in the order of the inputs.

        :raises EntryError: A value is missing that may not be left empty.
        """
        missing = [field.label for field in self.required if field not in values]
        if missing:
            why = ": no B200 baseline is known for these lengths" if any("B200" in label for label in missing) else ""
            raise EntryError(f"the leaderboard needs {', '.join(missing)}, which the result lacks{why}")
        return [values.get(field) for field in self.fields]


class SchemaError(ValueError):
    """A leaderboard's inputs do not fit our fields; the message shows both lists."""


class EntryError(ValueError):
    """A value that a leaderboard needs is missing, or may not be sent."""


def match_labels(labels: Sequence[str]) -> Schema:
    """The schema of a leaderboard with these labels.

    Eleven inputs must be those of the competition, in its order. Twelve or fourteen may come in any order: they are
    filled according to their labels.

    :raises SchemaError: The number of inputs is none of these, a label names a field that belongs elsewhere, or a field
        cannot be assigned.
    """
    found = [recognise(label) for label in labels]
    named = tuple(field for field in found if field is not None)
    unknown = tuple(label for label, field in zip(labels, found, strict=True) if field is None)
    if len(labels) == 11 or (len(labels) == 14 and unknown):
        fields = FIELDS_11 if len(labels) == 11 else FIELDS_14
    else:
        fields = named
    if problem := _problem(labels, found, fields, unknown):
        raise SchemaError(f"{problem}\n{side_by_side(labels, FIELDS_14 if len(labels) == 14 else FIELDS_11)}")
    return Schema(fields, tuple(labels), unknown)


def _problem(
    labels: Sequence[str], found: Sequence[Field | None], fields: Sequence[Field], unknown: Sequence[str]
) -> str:
    """Why `fields` cannot be sent to inputs with these labels; empty if they can."""
    if len(labels) not in (11, 12, 14):
        return f"the leaderboard takes {len(labels)} values; known are 11, 12 and 14"
    if twice := [field.label for field in Field if found.count(field) > 1]:
        return f"two of the leaderboard's inputs have labels for {twice[0]}"
    if len(fields) != len(labels):
        shown = ", ".join(repr(one_line(label)) for label in unknown)
        return f"of the leaderboard's 12 inputs, {shown} cannot be recognised"
    if missing := [field.label for field in (Field.TEAM, Field.CONC) if field not in fields]:
        return f"the leaderboard has no input for {' and '.join(missing)}"
    for place, (label, theirs, ours) in enumerate(zip(labels, found, fields, strict=True), start=1):
        if theirs not in (None, ours):
            return (
                "the leaderboard's inputs are in another order: "
                f"input {place} has the label {one_line(label)!r}, where we would send {ours.label}"
            )
    return ""


def side_by_side(labels: Sequence[str], ours: Sequence[Field]) -> str:
    """The leaderboard's labels beside ours, one line for each input."""
    rows = [("", "the leaderboard takes", "we send")]
    for place, (label, field) in enumerate(zip_longest(labels, ours), start=1):
        rows.append(
            (f"{place}.", "-" if label is None else one_line(label)[:60], "-" if field is None else field.label)
        )
    width = max(len(theirs) for _, theirs, _ in rows)
    return "\n".join(f"{place:>4} {theirs:<{width}}  {mine}" for place, theirs, mine in rows)


def values_of(result: Result, team: str) -> Values:
    """The values of `result` in full precision.

    :raises EntryError: A value is not a finite number above 0, or the concurrency is missing.
    """
    conc = result.benchmark_args.max_concurrency if result.benchmark_args is not None else 0
    # Accuracy and B200's figures are in objects of their own.
    places = (result, result.b200_baseline_nv1126, result.accuracy)
    values: dict[Field, str | int | float] = {Field.TEAM: team}
    for field in FIELDS_14[1:]:
        found = (getattr(place, field, None) for place in places)
        value = conc if field is Field.CONC else next((one for one in found if one is not None), None)
        if value is None:
            continue
        if not math.isfinite(value) or value <= 0:
            raise EntryError(f"{field.label} is {value!r}, not a finite number above 0")
        values[field] = value
    return values


def key_of(values: Values, url: str) -> str:
    """Identifies a row on the leaderboard at `url`, in any order of its values."""
    content = json.dumps([url, sorted((str(field), value) for field, value in values.items())])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
