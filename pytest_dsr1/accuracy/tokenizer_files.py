"""Reads a model's tokenizer files, from a folder or from the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pytest_dsr1.core.text import first_line

#: Files fetched from the hub: kilobytes to a few megabytes, never weights.
_HUB_FILES = ("tokenizer_config.json", "config.json", "tokenizer.json")


class TokenizerNotFoundError(LookupError):
    """A source has no usable tokenizer; the message names the source and the reason."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a model's files say; None for what they do not say.

    :param source: The folder, or the model's name at the hub.
    :param encode: Text to ids, without special tokens.
    :param prefix_token_id: BOS, else EOS.
    :param vocab_size: Number of ids without added tokens; at most the number of rows of the model's embedding.
    """

    source: str
    encode: Callable[[str], list[int]] | None
    prefix_token_id: int | None
    vocab_size: int | None


def read_folder(folder: Path, source: str | None = None) -> TokenizerFiles:
    """Read a Hugging Face model folder, without access to the network.

    :param source: Its name in errors and results; by default the folder's path.
    :raises TokenizerNotFoundError: if the folder does not exist or has no usable file.
    """
    folder = folder.expanduser()
    source = source or str(folder)
    if not folder.is_dir():
        raise TokenizerNotFoundError(f"there is no folder {source}")
    settings, config = _json(folder / "tokenizer_config.json"), _json(folder / "config.json")
    if (folder / "tokenizer.json").is_file():
        return _from_tokenizer_json(folder, source, settings, config)
    if settings:
        return _from_transformers(folder, source)
    if not config:
        raise TokenizerNotFoundError(f"{source} has neither tokenizer.json nor tokenizer_config.json nor config.json")
    return TokenizerFiles(source, None, _special_id(config), _positive(config.get("vocab_size")))


def read_hub(name: str) -> TokenizerFiles:
    """Read a model's files from the hub, or from its cache if HF_HUB_OFFLINE is set.

    :raises TokenizerNotFoundError: if the hub has none of the files, or cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    found, unreachable = None, False
    for file in _HUB_FILES:
        try:
            found = Path(huggingface_hub.hf_hub_download(name, file, local_files_only=unreachable))
        except EntryNotFoundError as error:
            missing: Exception = error
            # An unreachable hub is asked only once: its client takes 24 s to give up.
            unreachable = unreachable or isinstance(error, LocalEntryNotFoundError)
        # The hub's client, its HTTP library and its validation of names raise unrelated exceptions.
        except Exception as error:
            raise TokenizerNotFoundError(f"the hub has no {name} ({_reason(error)})") from None
    if found is None:
        raise TokenizerNotFoundError(f"the hub has no tokenizer of {name} ({_reason(missing)})")
    return read_folder(found.parent, f"{name} at the hub")


def _from_tokenizer_json(
    folder: Path, source: str, settings: dict[str, object], config: dict[str, object]
) -> TokenizerFiles:
    # Not through transformers: its classes may rebuild the tokenizer, and its versions differ in adding BOS.
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The Rust side raises plain Exception.
    except Exception as error:
        raise TokenizerNotFoundError(f"tokenizer.json of {source} cannot be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    names = (_content(settings.get(key)) for key in ("bos_token", "eos_token"))
    ids = (tokenizer.token_to_id(name) for name in names if name is not None)
    prefix = next((number for number in ids if number is not None), _special_id(config))
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    rows = _positive(config.get("vocab_size"))
    return TokenizerFiles(
        source,
        lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        prefix,
        size if rows is None else min(size, rows),
    )


def _from_transformers(folder: Path, source: str) -> TokenizerFiles:
    """Read a tokenizer in an older format, e.g. a SentencePiece model."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    # A tokenizer class of any model may raise anything.
    except Exception as error:
        raise TokenizerNotFoundError(f"the tokenizer of {source} cannot be read: {_reason(error)}") from None
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return TokenizerFiles(
        source,
        lambda text: list(tokenizer(text, add_special_tokens=False).input_ids),
        prefix,
        _positive(tokenizer.vocab_size),
    )


def _json(path: Path) -> dict[str, object]:
    """The JSON object in a file; empty if there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _content(token: object) -> str | None:
    """The text of a special token, which is a string or an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _special_id(config: dict[str, object]) -> int | None:
    """The id of BOS, else of EOS, in config.json; of several EOS ids the first."""
    for key in ("bos_token_id", "eos_token_id"):
        value = config.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, int):
            return value
    return None


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _reason(error: Exception) -> str:
    return first_line(str(error).strip()) or type(error).__name__
