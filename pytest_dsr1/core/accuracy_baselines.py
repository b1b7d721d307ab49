"""Accuracy baselines as data: JSON text to values and back, and which of them applies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from pytest_dsr1.core.gate import AccuracyBaseline, AccuracyFigures

# Format history:
# 1 - {"schema": …, "version": 1, "baselines": [{"model", "task", "source", "figures": {name: value, …}}, …]}
SCHEMA = "pytest-dsr1/accuracy-baselines"
VERSION = 1


def from_json(text: str, origin: str) -> tuple[AccuracyBaseline, ...]:
    """Read the baselines of one file.

    :param origin: What the text was read from, for the errors.
    :raises ValueError: Not JSON, another schema or version, a field missing or of the wrong kind, (model, task) twice.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{origin} is not JSON ({error}); --record-accuracy-baseline writes such a file") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{origin} holds no accuracy baselines: its schema is {found!r}, expected {SCHEMA!r}")
    if data.get("version") != VERSION:
        raise ValueError(f"{origin} has version {data.get('version')!r} of {SCHEMA}, this version reads {VERSION}")
    entries = data.get("baselines")
    if not isinstance(entries, list):
        raise ValueError(f"{origin}: 'baselines' must be a list, found {type(entries).__name__}")
    baselines = tuple(_entry(entry, f"{origin}, baseline {number}") for number, entry in enumerate(entries, 1))
    keys = [(baseline.model, baseline.task) for baseline in baselines]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{origin} has two baselines for ({key[0]}, {key[1]})")
    return baselines


def _entry(entry: object, origin: str) -> AccuracyBaseline:
    if not isinstance(entry, dict) or not isinstance(entry.get("figures"), dict):
        raise ValueError(f"{origin}: expected an object with model, task, source and figures")
    texts, figures = {}, {}
    for key in ("model", "task", "source"):
        text = entry.get(key)
        if not isinstance(text, str) or not text:
            raise ValueError(f"{origin}: {key!r} must be a text, found {text!r}")
        texts[key] = text
    for key in ("bits_per_byte", "byte_perplexity", "word_perplexity"):
        number = entry["figures"].get(key)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{origin}: {key!r} must be a number, found {number!r}")
        figures[key] = float(number)
    try:
        return AccuracyBaseline(figures=AccuracyFigures(**figures), **texts)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def to_json(baselines: Iterable[AccuracyBaseline]) -> str:
    """Write `baselines` as `from_json` reads them; floats keep every digit."""
    entries = [
        {"model": one.model, "task": one.task, "source": one.source, "figures": dict(one.figures)} for one in baselines
    ]
    return json.dumps({"schema": SCHEMA, "version": VERSION, "baselines": entries}, indent=2, ensure_ascii=False) + "\n"


def merged(baselines: Iterable[AccuracyBaseline], new: AccuracyBaseline) -> tuple[AccuracyBaseline, ...]:
    """`baselines` with `new` in the place of the one for the same (model, task), or at the end."""
    by_key: Mapping[tuple[str, str], AccuracyBaseline] = {
        **{(one.model, one.task): one for one in baselines},
        (new.model, new.task): new,
    }
    return tuple(by_key.values())


def applicable(
    model: str,
    task: str,
    *,
    published: Iterable[AccuracyBaseline],
    given: Iterable[AccuracyBaseline] = (),
    submit: bool = False,
) -> AccuracyBaseline | None:
    """Find the baseline that judges (model, task); None if there is none.

    :param published: The project's own.
    :param given: Those of `--accuracy-baseline`. They come first, but where results are submitted: there a published
        figure is what the leaderboard goes by, and nobody's to replace.
    """
    first, second = (published, given) if submit else (given, published)
    for one in (*first, *second):
        if (one.model, one.task) == (model, task):
            return one
    return None
