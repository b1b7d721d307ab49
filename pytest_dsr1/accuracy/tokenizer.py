"""The served model's tokenizer, and the size of its vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import requests

from pytest_dsr1.core.server import Served, is_loopback
from pytest_dsr1.core.text import first_line

#: Deadline for one text, in seconds; a server tokenizes a chunk of WikiText within milliseconds.
TOKENIZE_TIMEOUT_S = 30.0
#: DeepSeek-R1, by the last part of its name. Distilled models are left out: they have their base model's vocabulary.
_DEEPSEEK_R1 = re.compile(r"deepseek-r1(?!.*distill)", re.IGNORECASE)
#: Its vocabulary size, without added tokens.
DEEPSEEK_R1_VOCABULARY = 128_000
#: Files fetched from the hub: kilobytes to a few megabytes, never weights.
_HUB_FILES = ("tokenizer_config.json", "config.json", "tokenizer.json")


class VocabularyError(ValueError):
    """No tokenizer or no vocabulary size was found; names the options that set them."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Turns text into ids of the served model's vocabulary.

    :param encode: Text to ids, without special tokens.
    :param prefix_token_id: The token that the first one is predicted from: BOS, or EOS if the model has no BOS.
    :param source: Where the tokenizer comes from, in a few words; stored with the result.
    :param vocab_size: Number of ids without added tokens; None if the source does not say.
    """

    encode: Callable[[str], list[int]]
    prefix_token_id: int
    source: str
    vocab_size: int | None = None


@dataclass(frozen=True, slots=True)
class VocabSize:
    """Prompts may have the ids 0 to `size` - 1. `source` is where the size comes from."""

    size: int
    source: str


@dataclass(frozen=True, slots=True)
class _Source:
    """What a server, or a model's files, say; None for what they do not say.

    :param name: The URL, the folder, or the model's name at the hub.
    :param vocab_size: Number of ids without added tokens; at most the number of rows of the model's embedding.
    :param problem: Why it says less than it should, in a few words.
    """

    name: str
    encode: Callable[[str], list[int]] | None = None
    prefix_token_id: int | None = None
    vocab_size: int | None = None
    problem: str = ""


def find_tokenizer(option: str | None, served: Served) -> Tokenizer:
    """Find the tokenizer of the served model.

    In this order: `--tokenizer`, the server's /tokenize, a folder that the server names, the hub. A corpus is tokenized
    once, however often it is measured.

    :param option: `--tokenizer`: a folder, or a model's name at the hub.
    :raises VocabularyError: if there is no tokenizer, or none with a prefix token.
    """
    if option is not None:
        lookups = [partial(_read, option)]
    else:
        lookups = [partial(_ask_server, served), *(partial(_read, name) for name in _folders_first(served))]
    tried = []
    for lookup in lookups:
        source = lookup()
        if source.encode is not None and source.prefix_token_id is not None:
            name = source.name if option is None else f"--tokenizer {source.name}"
            return Tokenizer(cache(source.encode), source.prefix_token_id, name, source.vocab_size)
        tried.append(source.problem)
    if option is not None:
        raise VocabularyError(f"--tokenizer {option}: {tried[0]}; give a folder or a name at the hub")
    raise VocabularyError(
        f"no tokenizer found for {served.model} at {served.url}: {'; '.join(tried)}. "
        "Name one with --tokenizer NAME|PATH, or turn the accuracy gate off with --accuracy off"
    )


def find_vocab_size(option: int | None, served: Served, tokenizer: Tokenizer | None = None) -> VocabSize:
    """Find the number of ids that prompts are drawn from.

    In this order: `--vocab-size`, the server, the tokenizer, the model's folder, DeepSeek-R1's by its name, the hub. It
    is never found by trying: an id that is too large crashes an SGLang server.

    :param tokenizer: The model's tokenizer, if it was already looked for.
    :raises VocabularyError: if no source knows the size.
    """
    if option is not None:
        return VocabSize(option, "--vocab-size")
    tried: list[str] = []
    for source in _sized_sources(served, tokenizer):
        if source.vocab_size is not None:
            return VocabSize(source.vocab_size, source.name)
        tried += filter(None, [source.problem])
    raise VocabularyError(
        f"the vocabulary of {served.model} at {served.url} is not known: {'; '.join(tried) or 'no file has it'}. "
        "Set it with --vocab-size N, or name the model's tokenizer with --tokenizer NAME|PATH"
    )


def _sized_sources(served: Served, tokenizer: Tokenizer | None) -> Iterator[_Source]:
    yield _Source(f"vocab_size of {served.url}/server_info", vocab_size=_positive(served.info.get("vocab_size")))
    if tokenizer is not None:
        yield _Source(tokenizer.source, vocab_size=tokenizer.vocab_size)
    names = _folders_first(served)
    yield from (_read(name) for name in names if _is_path(name))
    for name in names:
        if _DEEPSEEK_R1.match(name.rstrip("/").rpartition("/")[2]):
            yield _Source(f"known vocabulary of {name}", vocab_size=DEEPSEEK_R1_VOCABULARY)
    yield from (_read(name) for name in names if not _is_path(name))


def _ask_server(served: Served) -> _Source:
    """The server's /tokenize."""
    url = f"{served.url}/tokenize"

    def encode(text: str, *, special: bool = False) -> list[int]:
        payload = {"model": served.model, "prompt": text, "add_special_tokens": special}
        try:
            with requests.Session() as session:
                session.trust_env = not is_loopback(served.url)
                reply = session.post(url, json=payload, timeout=TOKENIZE_TIMEOUT_S)
            tokens = reply.json().get("tokens") if reply.status_code == 200 else None
        # AttributeError: the reply is JSON, but not an object.
        except (requests.RequestException, ValueError, AttributeError) as error:
            raise VocabularyError(f"{url} failed ({type(error).__name__})") from None
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise VocabularyError(f"{url} returned no token ids (HTTP {reply.status_code})")
        return tokens

    try:
        plain, special = encode("a"), encode("a", special=True)
    except VocabularyError as error:
        return _Source(url, problem=str(error))
    # BOS, else EOS: what the server reports, what it puts in front of a text, what its model's files say.
    prefixes = chain(
        [served.info.get("bos_token_id"), special[0] if special[1:] == plain else None],
        (_read(name).prefix_token_id for name in _folders_first(served)),
    )
    prefix = next((prefix for prefix in prefixes if isinstance(prefix, int)), None)
    if prefix is None:
        return _Source(
            url, problem=f"{url} works, but neither the server nor the model's files name a BOS or EOS token"
        )
    if prefix in plain:
        return _Source(url, problem=f"{url} adds special tokens despite add_special_tokens=false")
    return _Source(url, encode, prefix)


def _is_path(name: str) -> bool:
    """Whether `name` is, or can only be, a local folder; the hub is not asked for it."""
    return name.startswith(("/", ".", "~")) or Path(name).exists()


def _folders_first(served: Served) -> list[str]:
    """Folders, then names at the hub, that may have the model's files."""
    return sorted(served.names, key=lambda name: not _is_path(name))


def _read(name: str) -> _Source:
    """What a model's files say, in a folder or at the hub."""
    if not _is_path(name):
        return _read_hub(name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return _Source(name, problem=f"there is no folder {folder}")
    return _read_folder(folder, str(folder))


def _read_hub(name: str) -> _Source:
    """From the hub, or from its cache if the hub cannot be reached."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    found, unreachable, problem = None, False, ""
    for file in _HUB_FILES:
        try:
            found = Path(huggingface_hub.hf_hub_download(name, file, local_files_only=unreachable))
        except EntryNotFoundError as error:
            problem = f"the hub has no tokenizer of {name} ({_reason(error)})"
            # An unreachable hub is asked only once: its client takes 24 s to give up.
            unreachable = unreachable or isinstance(error, LocalEntryNotFoundError)
        # The hub's client, its HTTP library and its validation of names raise unrelated exceptions.
        except Exception as error:
            return _Source(name, problem=f"the hub has no {name} ({_reason(error)})")
    return _Source(name, problem=problem) if found is None else _read_folder(found.parent, f"{name} at the hub")


def _read_folder(folder: Path, name: str) -> _Source:
    """From a Hugging Face model folder, without access to the network."""
    settings, config = _json(folder / "tokenizer_config.json"), _json(folder / "config.json")
    rows, prefix = _positive(config.get("vocab_size")), _special_id(config)
    if not (folder / "tokenizer.json").is_file():
        return _Source(name, None, prefix, rows, f"{name} has no tokenizer.json")
    # Not through transformers: its classes may rebuild the tokenizer, and its versions differ in adding BOS.
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The Rust side raises plain Exception.
    except Exception as error:
        return _Source(name, problem=f"tokenizer.json of {name} cannot be read: {error}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for key in ("eos_token", "bos_token"):
        token = settings.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and (number := tokenizer.token_to_id(text)) is not None:
            prefix = number
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    return _Source(
        name,
        lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        prefix,
        size if rows is None else min(size, rows),
        "" if prefix is not None else f"{name} names neither a BOS nor an EOS token",
    )


def _json(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _special_id(config: Mapping[str, Any]) -> int | None:
    """The id of BOS, else of EOS, in config.json; of several EOS ids the first."""
    for key in ("bos_token_id", "eos_token_id"):
        value = config.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, int):
            return value
    return None


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _reason(error: Exception) -> str:
    return first_line(str(error).strip()) or type(error).__name__
