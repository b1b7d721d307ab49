"""What a leaderboard's inputs mean: its labels to our fields, and what does not fit, before anything is sent.

Gradio drops surplus values and reports success, and stores whatever it gets in the order in which it comes. So both the
number of inputs and what each is called are compared first.
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
    """What we can say of a result, by the name that an outbox keeps."""

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


#: How our own leaderboard labels each, and error messages name it.
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
#: Those that a result has only where B200 was measured.
B200_FIELDS = frozenset(field for field in Field if "b200" in field)
#: The order of the largest family, as the predecessor posts it.
FIELDS_14 = tuple(Field)
_INTERACTIVITIES = (Field.INTERACTIVITY, Field.B200_INTERACTIVITY, Field.INTERACTIVITY_RATIO)
#: The order of the competition's Spaces, and what is assumed of a leaderboard that cannot be asked.
FIELDS_11 = tuple(field for field in FIELDS_14 if field not in _INTERACTIVITIES)
#: The endpoint that every leaderboard of the family has.
API_NAME = "submit_results"
#: At the end of a label: the input may be left empty.
IF_KNOWN = ", if known"

_QUANTITIES = {
    frozenset({"team"}): "team",
    frozenset({"conc"}): "conc",
    frozenset({"e2e"}): "e2e",
    frozenset({"throughput"}): "throughput",
    frozenset({"interactivity"}): "interactivity",
    frozenset({"bits", "byte"}): "bits_per_byte",
    frozenset({"byte", "perplexity"}): "byte_perplexity",
    frozenset({"word", "perplexity"}): "word_perplexity",
}
_ALIASES = {
    "concurrency": "conc",
    "tput": "throughput",
    "intvty": "interactivity",
    "ppl": "perplexity",
    "bpb": "bits byte",
    "tputpergpu": "throughput",
    "tokens": "",
    "token": "",
    "tok": "",
}
#: Units, and what may stand beside a quantity without changing which one it is. Whose figure it is, is one of these
#: unless it is B200's.
_SILENT = frozenset(
    {
        *("name", "the", "a", "in", "of", "to", "is", "per", "our", "ours", "mine", "higher", "lower", "better"),
        *(
            "median",
            "p50",
            "50th",
            "percentile",
            "latency",
            "time",
            "level",
            "wikitext",
            "gpu",
            "gpus",
            "user",
            "users",
        ),
        *("ms", "milliseconds", "s", "sec", "second", "seconds", "amd", "mi300x", "mi325x", "mi350x", "mi355x"),
    }
)


def recognise(label: str) -> Field | None:
    """Which of our fields a label names; None where that cannot be said for certain."""
    text = unicodedata.normalize("NFKC", label).lower().removesuffix(IF_KNOWN)
    text = re.sub(r"end[\s_-]*to[\s_-]*end", "e2e", text)
    # A ratio names both sides: "E2E Ratio (MI355X/B200)".
    ratio = re.search(r"\bratio\b", text.replace("_", " ")) is not None
    words: list[str] = []
    for word in re.findall(r"[^\W_]+", text):
        words += _ALIASES.get(word, word).split()
    told = set(words) - _SILENT - {"ratio"}
    b200 = bool(told & {"b200", "baseline"})
    quantity = _QUANTITIES.get(
        frozenset(told - {"b200", "baseline", "nv", "nvidia"} - ({"vs", "over"} if ratio else set()))
    )
    if quantity is None:
        return None
    if ratio:
        return {
            "e2e": Field.E2E_RATIO,
            "throughput": Field.THROUGHPUT_RATIO,
            "interactivity": Field.INTERACTIVITY_RATIO,
        }.get(quantity)
    # A throughput that is not said to be one GPU's may be the whole machine's.
    if quantity == "throughput" and not re.search(r"gpus?(?![a-z])", text):
        return None
    if b200:
        return {
            "e2e": Field.B200_E2E,
            "throughput": Field.B200_THROUGHPUT,
            "interactivity": Field.B200_INTERACTIVITY,
        }.get(quantity)
    return {
        "team": Field.TEAM,
        "conc": Field.CONC,
        "e2e": Field.E2E,
        "throughput": Field.THROUGHPUT,
        "interactivity": Field.INTERACTIVITY,
    }.get(quantity) or Field(quantity)


@dataclass(frozen=True)
class Schema:
    """How a leaderboard is filled.

    :param fields: What goes into each input, in order.
    :param labels: What it calls them; empty if it could not be asked.
    :param unknown: Labels that nobody recognises; their inputs are filled by their place, if that is accepted.
    """

    fields: tuple[Field, ...]
    labels: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def may_be_empty(self, place: int) -> bool:
        """Whether the leaderboard says that this input need not be filled."""
        return bool(self.labels) and self.labels[place].lower().endswith(IF_KNOWN)


#: Of a leaderboard that could not be asked.
ASSUMED = Schema(FIELDS_11)


class SchemaError(ValueError):
    """A leaderboard does not take what we send; the message shows both, side by side."""


def match(labels: Sequence[str]) -> Schema:
    """How to fill a leaderboard with these labels.

    Eleven inputs are those of the competition, in its order. Twelve or fourteen are filled by what they are called.

    :raises SchemaError: Another number of inputs; or one that is called by the name of another field of ours.
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
        raise SchemaError(f"two of the leaderboard's inputs are called {LABELS[twice]}\n{side_by_side(labels)}")
    if len(labels) != 11 and not unknown:
        if missing := [LABELS[field] for field in (Field.TEAM, Field.CONC) if field not in named]:
            raise SchemaError(f"the leaderboard has no input for {' and '.join(missing)}\n{side_by_side(labels)}")
        return Schema(tuple(named), tuple(labels))
    if order is None:
        shown = ", ".join(repr(one_line(label)) for label in unknown)
        raise SchemaError(f"nobody knows what to put into {shown} of 12 inputs\n{side_by_side(labels)}")
    wrong = [
        f"{place}. is called {one_line(label)!r}, where we would send {LABELS[ours]}"
        for place, (label, theirs, ours) in enumerate(zip(labels, found, order, strict=True), start=1)
        if theirs is not None and theirs is not ours
    ]
    if wrong:
        raise SchemaError(f"the leaderboard's inputs are in another order: {wrong[0]}\n{side_by_side(labels, order)}")
    return Schema(order, tuple(labels), unknown)


def side_by_side(labels: Sequence[str], ours: Sequence[Field] = FIELDS_11) -> str:
    """Both lists, one line for each place."""
    rows = [("", "the leaderboard takes", "we send")]
    for place, (label, field) in enumerate(zip_longest(labels, ours), start=1):
        rows.append(
            (f"{place}.", "-" if label is None else one_line(label)[:60], "-" if field is None else LABELS[field])
        )
    width = max(len(theirs) for _, theirs, _ in rows)
    return "\n".join(f"{place:>4} {theirs:<{width}}  {mine}" for place, theirs, mine in rows)
