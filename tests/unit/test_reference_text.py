"""Text from single tokens: characters are whole and stop strings are left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from pytest_dsr1.reference.text import TextStream, Vocabulary
from pytest_dsr1.reference.weights import CheckpointError
from tests import tiny_deepseek


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """A token for each byte, and three special ones."""
    return Vocabulary.load(tiny_deepseek.make().save(tmp_path_factory.mktemp("tiny")), 260)


def pieces(vocabulary: Vocabulary, tokens: list[int], stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    """What each token gives out, and last what remained."""
    stream = TextStream(vocabulary, stops)
    return [*(stream.push(token) for token in tokens), stream.flush()], stream


@given(text=st.text())
def test_encoding_and_decoding_is_the_identity(vocabulary: Vocabulary, text: str) -> None:
    """A byte-level vocabulary has every text."""
    assert vocabulary.decode(vocabulary.encode(text)) == text


@given(text=st.text(min_size=1))
def test_characters_come_whole(vocabulary: Vocabulary, text: str) -> None:
    """Each character appears with its last byte; together they are the text."""
    found, _ = pieces(vocabulary, vocabulary.encode(text))
    assert "".join(found) == text
    assert [piece for piece in found if piece] == list(text)


@given(tokens=st.lists(st.integers(0, 259)))
def test_any_tokens_give_what_decoding_them_at_once_gives(vocabulary: Vocabulary, tokens: list[int]) -> None:
    """Bytes that are no text become U+FFFD just the same; special tokens show nothing."""
    assert "".join(pieces(vocabulary, tokens)[0]) == vocabulary.decode(tokens)


@given(tokens=st.lists(st.integers(0, 259)))
def test_a_settled_stream_gives_out_the_tokens_own_text(vocabulary: Vocabulary, tokens: list[int]) -> None:
    """What lets a server write text that was rendered beforehand."""
    stream = TextStream(vocabulary)
    for token in tokens:
        rendered = vocabulary.token_json[token] if stream.settled else None
        given_out = stream.push(token)
        assert rendered is None or json.loads(rendered) == given_out


@given(text=st.text("abc", max_size=30), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string(vocabulary: Vocabulary, text: str, stops: list[str]) -> None:
    """A stop string is left out completely; a mere beginning of one is text."""
    stream, found = TextStream(vocabulary, tuple(stops)), ""
    for end, token in enumerate(vocabulary.encode(text), 1):
        found += stream.push(token)
        seen = text[:end]
        if any(stop in seen for stop in stops):
            assert stream.stopped_by in stops
            assert found == seen[: min(seen.find(stop) for stop in stops if stop in seen)]
            assert stream.flush() == ""
            return
    assert stream.stopped_by is None
    assert found + stream.flush() == text


def test_special_tokens_have_no_text(vocabulary: Vocabulary) -> None:
    """They are no part of what a user asked for."""
    assert [vocabulary.decode([id_]) for id_ in range(3)] == ["", "", ""]


def test_another_kind_of_tokenizer_is_an_error(tmp_path: Path) -> None:
    """Its tokens are not bytes, so nothing would decode."""
    tokenizers.Tokenizer(models.WordLevel({"\u4e16": 0}, unk_token="\u4e16")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="not a byte-level tokenizer"):
        Vocabulary.load(tmp_path, 1)


def test_an_absent_tokenizer_is_an_error(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no readable tokenizer"):
        Vocabulary.load(tmp_path, 1)
