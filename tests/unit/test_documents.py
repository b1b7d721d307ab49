"""Corpora and the tasks that they make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.accuracy.documents import (
    WIKITEXT_TASK,
    AccuracyError,
    AccuracyTask,
    Document,
    heldout_task,
    read_rows,
    task_for,
    wikitext_task,
)

TASK = AccuracyTask("t", (Document("one two", 2), Document("drei", 1), Document("ü", 1)))


def rows_file(folder: Path, *texts: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_wikitext_is_the_seeds_to_the_byte(shared: Path) -> None:
    """167 documents, 341,663 words, 1,296,248 bytes, as for the published figures."""
    task = wikitext_task(shared / "data" / "wikitext2_raw_test_rows.jsonl")
    assert (task.name, len(task.documents), task.words, task.bytes) == (WIKITEXT_TASK, 167, 341_663, 1_296_248)


def test_limited_wikitext_is_its_first_documents(shared: Path) -> None:
    """`--accuracy-limit 3` makes a task with another name and so other baselines."""
    data = shared / "data" / "wikitext2_raw_test_rows.jsonl"
    task = task_for(reference=True, data=data, limit=3)
    assert task.name == f"{WIKITEXT_TASK}[:3]"
    assert task.documents == wikitext_task(data).documents[:3]


def test_another_corpus_is_refused_by_its_hash(tmp_path: Path) -> None:
    """The error shows both hashes and what was counted."""
    path = rows_file(tmp_path, "not", "WikiText")
    with pytest.raises(
        AccuracyError, match=r"rows\.jsonl is not .*WikiText-2 .*: 2 rows, 13 characters, sha256 .*696cca6b"
    ):
        wikitext_task(path)


def test_an_unreachable_hub_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hub there is --accuracy-data."""
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(AccuracyError, match=r"ConnectionError: no route.* --accuracy-data PATH"):
        wikitext_task()


def test_the_hubs_rows_are_checked_like_a_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that changed at the hub is another corpus."""
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"text": ["changed"]})
    with pytest.raises(AccuracyError, match=r"Salesforce/wikitext/wikitext-2-raw-v1/test is not .*WikiText-2"):
        wikitext_task()


def test_heldout_words_are_separated_by_white_space(tmp_path: Path) -> None:
    """One row is one document."""
    task = heldout_task(rows_file(tmp_path, "a  b\nc", " d "))
    assert [(document.text, document.words) for document in task.documents] == [("a  b\nc", 3), (" d ", 1)]


def test_bytes_are_utf8() -> None:
    """A character can be several bytes."""
    assert TASK.bytes == 7 + 4 + 2


def test_a_limit_makes_a_task_of_its_own() -> None:
    """Its name says how many documents; no limit changes nothing."""
    assert TASK.first(2) == AccuracyTask("t[:2]", TASK.documents[:2])
    assert TASK.first(None) is TASK


def test_a_shorter_context_makes_a_task_of_its_own() -> None:
    """Shorter windows score worse, so the baseline of longer ones does not fit."""
    assert TASK.within(512) == AccuracyTask("t@512", TASK.documents, max_length=512)
    assert TASK.within(2048) is TASK
    assert TASK.within(163_840) is TASK
    assert TASK.within(None) is TASK


@pytest.mark.parametrize("documents", [(), (Document("", 0),)])
def test_an_empty_corpus_is_an_error(documents: tuple[Document, ...]) -> None:
    """Nothing is divided by zero words."""
    with pytest.raises(AccuracyError, match=r"corpus of .* is empty"):
        AccuracyTask("t", documents)


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    """The error has the path."""
    with pytest.raises(AccuracyError, match=r"none\.jsonl cannot be read"):
        read_rows(tmp_path / "none.jsonl")


@pytest.mark.parametrize("line", ["plain text", '{"text": 5}', '["text"]', '{"body": "x"}'])
def test_a_line_of_another_kind_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    """The error has path and line, and what is expected there."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(AccuracyError, match=r'rows\.jsonl:2.*\{"text": …\}'):
        read_rows(path)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_rows_survive_their_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """Line breaks of every kind inside a text included."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert read_rows(path) == texts
