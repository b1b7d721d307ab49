"""Texts for messages: short, printable, and with the place of a problem in words."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.core.text import convert, one_line, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (10407, "10407"),
        (-0.5, "-0.5"),
        (10**5000, "a very large number"),
        ("a\nb", r"'a\nb'"),
        ("x" * 70, repr("x" * 60 + "…")),
        (b"\xff<html>", "'\N{REPLACEMENT CHARACTER}<html>'"),
        ([1, 2], "a list"),
        ({"a": 1}, "an object"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_a_value_in_a_message(value: object, text: str) -> None:
    """Texts are quoted and cut, containers only named."""
    assert shown(value) == text


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(), st.lists))
def test_any_value_is_short_and_printable(value: object) -> None:
    """Whatever a file or a server holds."""
    text = shown(value, 20)
    assert text.isprintable()
    # An unprintable character is written with up to ten.
    assert len(text) <= 10 * 20 + 3


@given(st.text())
def test_one_line_is_printable(text: str) -> None:
    """A reason cannot control the terminal that shows it."""
    assert one_line(text).isprintable()


class Row(msgspec.Struct, forbid_unknown_fields=True):
    """A row of the files below."""

    conc: Annotated[int, msgspec.Meta(ge=1)]
    names: dict[str, int] = {}


class Table(msgspec.Struct):
    """A file with rows."""

    rows: list[Row]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"rows": [{"conc": 4}, {"conc": 0}]}, "t.json, row 2, conc: expected int >= 1, found 0"),
        ({"rows": [{"conc": "4"}]}, "t.json, row 1, conc: expected int, found '4'"),
        ({"rows": {}}, "t.json, rows: expected array, found an object"),
        ({"rows": [{}]}, "t.json, row 1: lacks the field conc"),
        ({"rows": [{"conc": 1, "osl": 2}]}, "t.json, row 1: has the unknown field osl"),
        ({"rows": [{"conc": 1, "names": {"a": "b"}}]}, "t.json, row 1, names: Expected int, got str"),
        ([], "t.json: expected object, found a list"),
    ],
    ids=str,
)
def test_a_validation_error_in_words(document: object, message: str) -> None:
    """File, row and field, what was expected and what was found."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared as a whole
        convert(document, Table, "t.json")
    assert str(caught.value) == message
