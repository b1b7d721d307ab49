"""Texts for messages; JSON that is read, with messages about what is wrong."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
H = TypeVar("H", bound=Hashable)

#: Numbers longer than this are not printed; Python itself refuses to print integers of more than 4,300 digits.
_LONGEST_INT_BITS = 128
_CONTAINERS: Mapping[type, str] = {list: "a list", tuple: "a list", dict: "an object"}


def shown(value: object, limit: int = 60) -> str:
    """`value` as a message shows it: printable, on one line, and short.

    Texts and bytes are quoted and cut after `limit` characters. Constants have the names of JSON. Containers are only
    named: their contents may be of any size and depth.
    """
    if isinstance(value, bytes):
        value = value[: 4 * limit].decode(errors="replace")
    if isinstance(value, str):
        return repr(value if len(value) <= limit else value[:limit] + "…")
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value.bit_length() <= _LONGEST_INT_BITS else "a very large number"
    if isinstance(value, float):
        return repr(value)
    return _CONTAINERS.get(type(value), type(value).__name__)


def one_line(text: str) -> str:
    """`text` on one line, without characters that cannot be printed.

    A reason may quote a server, and is shown on a terminal, which escape sequences would control.
    """
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def first_line(text: str) -> str:
    """The first line of a message: what it says before it quotes a log."""
    return text.partition("\n")[0].rstrip(":")


def duration(seconds: float) -> str:
    """`9 s`, `1 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def repeated(values: Iterable[H]) -> H | None:
    """A value that is there twice; None if all differ."""
    return next((value for value, count in Counter(values).items() if count > 1), None)


def parse_json(text: str, name: str) -> Any:
    """The document in `text`; errors call it `name`.

    :raises ValueError: It is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON: {error}") from None


def convert(document: object, kind: type[T], name: str) -> T:
    """`document`, a mapping or list, as a struct or dataclass; errors call it `name`.

    msgspec's "Expected `int`, got `str` - at `$.rows[0].isl`" becomes "NAME, row 1, isl: expected int, found 'x'".

    :raises ValueError: A field is missing, unknown or of the wrong type; the message says where and what was found.
    """
    # Not at the top: options are read with this module, and msgspec takes 45 ms to import.
    import msgspec

    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        complaint, _, path = str(error).replace("`", "").partition(" - at $")
    place, found = [name], document
    for field, index in re.findall(r"\.(\w+)|\[([\d.]+)\]", path):
        if index == "...":
            # msgspec does not say which key of a mapping it was.
            raise ValueError(f"{', '.join(place)}: {complaint}")
        if index:
            place[-1] = f"{place[-1].removesuffix('s')} {int(index) + 1}"
            found = found[int(index)] if isinstance(found, list | tuple) else None
        else:
            place.append(field)
            found = found.get(field) if isinstance(found, Mapping) else None
    if complaint.startswith("Expected "):
        complaint = f"e{complaint.partition(', got ')[0][1:]}, found {shown(found)}"
    complaint = complaint.replace("Object missing required field", "lacks the field")
    complaint = complaint.replace("Object contains unknown field", "has the unknown field")
    raise ValueError(f"{', '.join(place)}: {complaint}")
