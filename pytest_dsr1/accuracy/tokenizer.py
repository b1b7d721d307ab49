"""The served model's tokenizer, and the size of its vocabulary."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path

import requests

from pytest_dsr1.accuracy.tokenizer_files import TokenizerFiles, TokenizerNotFoundError, read_folder, read_hub
from pytest_dsr1.core.server import Served, is_loopback

#: Deadline for one text, in seconds; a server tokenizes a chunk of WikiText within milliseconds.
TOKENIZE_TIMEOUT_S = 30.0
#: Vocabulary sizes without added tokens, by the last part of the model's name in lower case. Distilled models are left
#: out: they have the vocabulary of their base model.
KNOWN_VOCABULARIES = ((re.compile(r"deepseek-r1(?!.*distill)"), 128_000),)


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


def find_tokenizer(option: str | None, served: Served) -> Tokenizer:
    """Find the tokenizer of the served model.

    In this order: `--tokenizer`, the server's /tokenize, a folder that the server names, the hub. The ids of a text are
    cached, so a corpus is tokenized once, however often it is measured.

    :param option: `--tokenizer`: a folder, or a model's name at the hub.
    :raises VocabularyError: if there is no tokenizer, or none with a prefix token.
    """
    if option is not None:
        try:
            return _from_name(option, "--tokenizer ")
        except TokenizerNotFoundError as error:
            raise VocabularyError(f"--tokenizer {option}: {error}; give a folder or a name at the hub") from None
    tried = []
    folders, hub_names = _folders_and_hub_names(served)
    for find in (partial(_from_server, served), *(partial(_from_name, name) for name in folders + hub_names)):
        try:
            return find()
        except TokenizerNotFoundError as error:
            tried.append(str(error))
    raise VocabularyError(
        f"no tokenizer found for {served.model} at {served.url}: {'; '.join(tried)}. "
        "Name one with --tokenizer NAME|PATH, or turn the accuracy gate off with --accuracy off"
    )


def find_vocab_size(option: int | None, served: Served, tokenizer: Tokenizer | None = None) -> VocabSize:
    """Find the number of ids that prompts are drawn from.

    In this order: `--vocab-size`, the server, the tokenizer, the model's folder, a table of known models, the hub. It
    is never found by trying: an id that is too large crashes an SGLang server.

    :param tokenizer: The model's tokenizer, if it was already looked for.
    :raises VocabularyError: if no source knows the size, or `--vocab-size` is not positive.
    """
    if option is not None:
        if option < 1:
            raise VocabularyError(f"--vocab-size must be at least 1, got {option}")
        return VocabSize(option, "--vocab-size")
    reported = served.info.get("vocab_size")
    if isinstance(reported, int) and not isinstance(reported, bool) and reported > 0:
        return VocabSize(reported, f"vocab_size of {served.url}/server_info")
    if tokenizer is not None and tokenizer.vocab_size is not None:
        return VocabSize(tokenizer.vocab_size, tokenizer.source)
    folders, hub_names = _folders_and_hub_names(served)
    tried: list[str] = []
    for name in folders:
        if (size := _vocab_size_of(name, tried)) is not None:
            return size
    for name in served.names:
        for pattern, known in KNOWN_VOCABULARIES:
            if pattern.match(name.rstrip("/").rpartition("/")[2].lower()):
                return VocabSize(known, f"known vocabulary of {name}")
    for name in hub_names:
        if (size := _vocab_size_of(name, tried)) is not None:
            return size
    raise VocabularyError(
        f"the vocabulary of {served.model} at {served.url} is not known: {'; '.join(tried) or 'no file has it'}. "
        "Set it with --vocab-size N, or name the model's tokenizer with --tokenizer NAME|PATH"
    )


def _vocab_size_of(name: str, tried: list[str]) -> VocabSize | None:
    """The size by the files of `name`; adds the reason to `tried` if unreadable."""
    try:
        files = _read(name)
    except TokenizerNotFoundError as error:
        tried.append(str(error))
        return None
    return None if files.vocab_size is None else VocabSize(files.vocab_size, files.source)


def _is_path(name: str) -> bool:
    """Whether `name` is, or can only be, a local folder; the hub is not asked for it."""
    return name.startswith(("/", ".", "~")) or Path(name).exists()


def _folders_and_hub_names(served: Served) -> tuple[list[str], list[str]]:
    return [name for name in served.names if _is_path(name)], [name for name in served.names if not _is_path(name)]


def _read(name: str) -> TokenizerFiles:
    return read_folder(Path(name)) if _is_path(name) else read_hub(name)


def _from_name(name: str, prefix: str = "") -> Tokenizer:
    files = _read(name)
    if files.encode is None:
        raise TokenizerNotFoundError(f"{files.source} has no tokenizer")
    if files.prefix_token_id is None:
        raise TokenizerNotFoundError(f"{files.source} names neither a BOS nor an EOS token")
    return Tokenizer(cache(files.encode), files.prefix_token_id, prefix + files.source, files.vocab_size)


def _from_server(served: Served) -> Tokenizer:
    """A tokenizer that asks the server's /tokenize."""
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
            raise TokenizerNotFoundError(f"{url} failed ({type(error).__name__})") from None
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise TokenizerNotFoundError(f"{url} returned no token ids (HTTP {reply.status_code})")
        return tokens

    plain, special = encode("a"), encode("a", special=True)
    added = special[0] if special[1:] == plain else None
    prefix = _prefix_token_id(served, added)
    if prefix in plain:
        raise TokenizerNotFoundError(f"{url} adds special tokens despite add_special_tokens=false")
    return Tokenizer(cache(encode), prefix, url)


def _prefix_token_id(served: Served, added: int | None) -> int:
    """BOS, else EOS: as the server reports it, else by its model's files.

    :param added: The token that /tokenize puts in front of a text; it is preferred to what the hub says.
    """
    reported = served.info.get("bos_token_id")
    if isinstance(reported, int):
        return reported
    folders, hub_names = _folders_and_hub_names(served)
    for prefix in chain(map(_prefix_token_of, folders), (added,), map(_prefix_token_of, hub_names)):
        if prefix is not None:
            return prefix
    raise TokenizerNotFoundError(
        f"{served.url}/tokenize works, but neither the server nor the model's files name a BOS or EOS token"
    )


def _prefix_token_of(name: str) -> int | None:
    try:
        return _read(name).prefix_token_id
    except TokenizerNotFoundError:
        return None
