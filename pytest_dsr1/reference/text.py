"""The tokenizer, and the conversion of a stream of tokens into text."""

from __future__ import annotations

import codecs
from pathlib import Path

import orjson
import tokenizers

from pytest_dsr1.reference.weights import CheckpointError


class Vocabulary:
    """A byte-level tokenizer.

    :ivar token_bytes: The bytes of each id; empty for special tokens, which never appear in generated text.
    :ivar token_json: The text of each id as a JSON string; None if the bytes of the id alone are not valid UTF-8.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, size: int) -> None:
        self._tokenizer = tokenizer
        characters = _byte_of_character()
        special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.token_bytes: list[bytes] = []
        self.token_json: list[bytes | None] = []
        for id_ in range(size):
            token = None if id_ in special else tokenizer.id_to_token(id_)
            raw = b"" if token is None else bytes(characters[character] for character in token)
            self.token_bytes.append(raw)
            try:
                self.token_json.append(orjson.dumps(raw.decode()))
            except UnicodeDecodeError:
                self.token_json.append(None)

    @classmethod
    def load(cls, folder: Path, size: int) -> Vocabulary:
        """Read `folder`/tokenizer.json.

        :param size: Number of ids in the model's vocabulary.
        :raises CheckpointError: if it cannot be read, or is not a byte-level tokenizer.
        """
        path = folder / "tokenizer.json"
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)), size)
        except KeyError as error:
            raise CheckpointError(f"{path}: not a byte-level tokenizer (it has the character {error})") from error
        except Exception as error:  # the library tokenizers raises Exception for every error
            raise CheckpointError(f"{path}: no readable tokenizer ({error})") from error

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`, with the special tokens of the tokenizer's template."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`; bytes that are not valid UTF-8 become U+FFFD."""
        return b"".join([self.token_bytes[id_] for id_ in ids]).decode(errors="replace")


class TextStream:
    """Turns a stream of tokens into text.

    Holds back text that may still change: an incomplete character, or the beginning of a stop string.

    :param stops: Strings that end the text; none of them is part of it.
    :ivar stopped_by: The stop string that ended the text; None if none has.
    """

    def __init__(self, vocabulary: Vocabulary, stops: tuple[str, ...] = ()) -> None:
        self._bytes = vocabulary.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = stops
        self._held = ""
        self.stopped_by: str | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing is held back, so that the next text is the next token's own."""
        return not self._held and not self._decoder.getstate()[0]

    def push(self, token: int) -> str:
        """Add a token; return the text that is final. Empty after a stop string."""
        return self._release(self._decoder.decode(self._bytes[token]))

    def flush(self) -> str:
        """The text still held back, at the end of the stream."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if not self._stops or self.stopped_by is not None:
            return "" if self.stopped_by is not None else text
        text = self._held + text
        self._held = ""
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            return text[:at]
        longest = max(len(stop) for stop in self._stops)
        for at in range(max(0, len(text) - longest + 1), len(text)):
            if any(stop.startswith(text[at:]) for stop in self._stops):
                self._held = text[at:]
                return text[:at]
        return text


def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Printable Latin-1 characters stand for themselves, the other bytes for the characters from 256 on. This is the
    convention of GPT-2's tokenizer, which all byte-level vocabularies follow.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
