"""The inputs of a leaderboard: which of our fields belongs into which.

Gradio drops surplus values and reports success, and stores values in the order in which they arrive. Therefore both the
number of inputs and their labels are compared with ours before anything is sent.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest

from pytest_dsr1.core.text import one_line


class Field(StrEnum):
    """One value of a row, by its name in results and in our leaderboard's database."""

    TEAM = "team"
    CONC = "conc"
    E2E = "median_e2el_ms"
    THROUGHPUT = "tput_per_gpu"
    B200_E2E = "b200_median_e2e_1126"
    B200_THROUGHPUT = "b200_tput_pergpu_1126"
    E2E_RATIO = "median_e2e_ratio_vs_b200_1126"
    THROUGHPUT_RATIO = "tput_per_gpu_ratio_vs_b200_1126"
    INTERACTIVITY = "interactivity"
    B200_INTERACTIVITY = "b200_median_intvty_1126"
    INTERACTIVITY_RATIO = "interactivity_ratio_vs_b200_1126"
    BITS_PER_BYTE = "bits_per_byte"
    BYTE_PERPLEXITY = "byte_perplexity"
    WORD_PERPLEXITY = "word_perplexity"


#: Labels of our own leaderboard; error messages use them too.
LABELS: Mapping[Field, str] = {
    Field.TEAM: "Team Name",
    Field.CONC: "CONC",
    Field.E2E: "E2E (median) (ms)",
    Field.THROUGHPUT: "Throughput per GPU (tokens/s)",
    Field.B200_E2E: "B200 E2E (median) (ms)",
    Field.B200_THROUGHPUT: "B200 Throughput per GPU (tokens/s)",
    Field.E2E_RATIO: "E2E Ratio",
    Field.THROUGHPUT_RATIO: "Throughput Ratio",
    Field.INTERACTIVITY: "Interactivity (tokens/s/user)",
    Field.B200_INTERACTIVITY: "B200 Interactivity (tokens/s/user)",
    Field.INTERACTIVITY_RATIO: "Interactivity Ratio",
    Field.BITS_PER_BYTE: "bits_per_byte",
    Field.BYTE_PERPLEXITY: "byte_perplexity",
    Field.WORD_PERPLEXITY: "word_perplexity",
}
#: A result has these only where a B200 figure is published.
B200_FIELDS = frozenset(field for field in Field if "b200" in field)
#: All fields, in the order in which the predecessor posts them.
FIELDS_14 = tuple(Field)
_INTERACTIVITIES = (Field.INTERACTIVITY, Field.B200_INTERACTIVITY, Field.INTERACTIVITY_RATIO)
#: Fields and order of the competition's Spaces; assumed for a leaderboard that cannot be asked.
FIELDS_11 = tuple(field for field in FIELDS_14 if field not in _INTERACTIVITIES)
#: The endpoint that every one of these leaderboards has.
API_NAME = "submit_results"
#: A label that ends so says that its input may be left empty.
IF_KNOWN = ", if known"

#: The words that identify a quantity, to its fields: ours, B200's, and the ratio of both.
_QUANTITIES: Mapping[frozenset[str], tuple[Field, Field | None, Field | None]] = {
    frozenset({"team"}): (Field.TEAM, None, None),
    frozenset({"conc"}): (Field.CONC, None, None),
    frozenset({"e2e"}): (Field.E2E, Field.B200_E2E, Field.E2E_RATIO),
    frozenset({"throughput"}): (Field.THROUGHPUT, Field.B200_THROUGHPUT, Field.THROUGHPUT_RATIO),
    frozenset({"interactivity"}): (Field.INTERACTIVITY, Field.B200_INTERACTIVITY, Field.INTERACTIVITY_RATIO),
    frozenset({"bits", "byte"}): (Field.BITS_PER_BYTE, None, None),
    frozenset({"byte", "perplexity"}): (Field.BYTE_PERPLEXITY, None, None),
    frozenset({"word", "perplexity"}): (Field.WORD_PERPLEXITY, None, None),
}
_ALIASES = {
    "concurrency": "conc",
    "tput": "throughput",
    "intvty": "interactivity",
    "ppl": "perplexity",
    "bpb": "bits byte",
    "tputpergpu": "throughput",
}
#: Units, and words that do not change which quantity a label names. A label that contains one of the device names
#: here means our figure.
_IGNORED = (
    "name the a in of to is per our ours mine higher lower better ratio "
    "median p50 50th percentile latency time level wikitext gpu gpus user users "
    "ms milliseconds s sec second seconds tokens token tok amd mi300x mi325x mi350x mi355x"
)


def recognise(label: str) -> Field | None:
    """The field that a label names; None where that is not certain."""
    text = unicodedata.normalize("NFKC", label).lower().removesuffix(IF_KNOWN)
    text = re.sub(r"end[\s_-]*to[\s_-]*end", "e2e", text)
    is_ratio = re.search(r"\bratio\b", text.replace("_", " ")) is not None
    words: list[str] = []
    for word in re.findall(r"[^\W_]+", text):
        words += _ALIASES.get(word, word).split()
    telling = set(words) - set(_IGNORED.split())
    is_b200 = bool(telling & {"b200", "baseline"})
    telling -= {"b200", "baseline", "nv", "nvidia"}
    # A ratio names both sides: "E2E Ratio (MI355X vs B200)".
    ours, b200, ratio = _QUANTITIES.get(frozenset(telling - ({"vs", "over"} if is_ratio else set())), (None,) * 3)
    if is_ratio:
        return ratio
    # A throughput may be that of the whole machine, unless the label says that it is per GPU.
    if ours is Field.THROUGHPUT and not re.search(r"gpus?(?![a-z])", text):
        return None
    return b200 if is_b200 else ours


@dataclass(frozen=True)
class Schema:
    """Which field goes into which input of a leaderboard.

    :param fields: One for each input, in the leaderboard's order.
    :param labels: The leaderboard's labels; empty if it could not be asked.
    :param unknown: Labels that were not recognised. Their fields follow from their position, and the user has to accept
        that.
    """

    fields: tuple[Field, ...]
    labels: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[Field, ...]:
        """The fields whose inputs may not be left empty."""
        labels = self.labels or ("",) * len(self.fields)
        pairs = zip(self.fields, labels, strict=True)
        return tuple(field for field, label in pairs if not label.lower().endswith(IF_KNOWN))


#: Stands in for the schema of a leaderboard that was not asked yet.
ASSUMED = Schema(FIELDS_11)


class SchemaError(ValueError):
    """A leaderboard's inputs do not fit our fields; the message shows both lists."""


def match_labels(labels: Sequence[str]) -> Schema:
    """The schema of a leaderboard with these labels.

    Eleven inputs must be those of the competition, in its order. Twelve or fourteen may come in any order: they are
    filled according to their labels.

    :raises SchemaError: The number of inputs is none of these, a label names a field that belongs elsewhere, or a field
        cannot be assigned.
    """
    found = [recognise(label) for label in labels]
    expected = {11: FIELDS_11, 12: None, 14: FIELDS_14}
    if len(labels) not in expected:
        raise SchemaError(
            f"the leaderboard takes {len(labels)} values; known are 11, 12 and 14\n{side_by_side(labels)}"
        )
    order = expected[len(labels)]
    named = [field for field in found if field is not None]
    unknown = tuple(label for label, field in zip(labels, found, strict=True) if field is None)
    if twice := next((field for field in named if named.count(field) > 1), None):
        raise SchemaError(f"two of the leaderboard's inputs have labels for {LABELS[twice]}\n{side_by_side(labels)}")
    if len(labels) != 11 and not unknown:
        if missing := [LABELS[field] for field in (Field.TEAM, Field.CONC) if field not in named]:
            raise SchemaError(f"the leaderboard has no input for {' and '.join(missing)}\n{side_by_side(labels)}")
        return Schema(tuple(named), tuple(labels))
    if order is None:
        shown = ", ".join(repr(one_line(label)) for label in unknown)
        raise SchemaError(f"of the leaderboard's 12 inputs, {shown} cannot be recognised\n{side_by_side(labels)}")
    wrong = [
        f"input {place} has the label {one_line(label)!r}, where we would send {LABELS[ours]}"
        for place, (label, theirs, ours) in enumerate(zip(labels, found, order, strict=True), start=1)
        if theirs is not None and theirs is not ours
    ]
    if wrong:
        raise SchemaError(f"the leaderboard's inputs are in another order: {wrong[0]}\n{side_by_side(labels, order)}")
    return Schema(order, tuple(labels), unknown)


def side_by_side(labels: Sequence[str], ours: Sequence[Field] = FIELDS_11) -> str:
    """The leaderboard's labels beside ours, one line for each input."""
    rows = [("", "the leaderboard takes", "we send")]
    for place, (label, field) in enumerate(zip_longest(labels, ours), start=1):
        rows.append(
            (f"{place}.", "-" if label is None else one_line(label)[:60], "-" if field is None else LABELS[field])
        )
    width = max(len(theirs) for _, theirs, _ in rows)
    return "\n".join(f"{place:>4} {theirs:<{width}}  {mine}" for place, theirs, mine in rows)
