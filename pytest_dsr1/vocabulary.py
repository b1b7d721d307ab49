"""Whose tokenizer makes the ids of the accuracy task, and how many ids a prompt may be drawn from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import requests

from pytest_dsr1.core.server import is_loopback
from pytest_dsr1.tokenizer_files import TokenizerFiles, TokenizerNotFoundError, read_folder, read_hub

#: Seconds for one text; a chunk of WikiText takes a server milliseconds.
TOKENIZE_TIMEOUT_S = 30.0
#: Vocabularies without added tokens, by the model's name (its last part, any case); distilled ones have their base's.
KNOWN_VOCABULARIES = ((re.compile(r"deepseek-r1(?!.*distill)"), 128_000),)


class VocabularyError(ValueError):
    """No tokenizer, or no vocabulary size: what was tried, and the options that settle it."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A served model.

    :param url: Base URL, without /v1.
    :param model: As /v1/models names it.
    :param info: What the server says of itself: /model_info and /server_info in one.
    """

    url: str
    model: str
    info: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))

    @property
    def names(self) -> tuple[str, ...]:
        """Where the model's files may be, as the server says, then by the model's name; no name twice."""
        said = (self.info.get(key) for key in ("tokenizer_path", "model_path"))
        return tuple(dict.fromkeys([*(name for name in said if isinstance(name, str) and name), self.model]))


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A text's ids in the served model's vocabulary.

    :param encode: Text to ids, without special tokens.
    :param prefix_token_id: What the first token is predicted from: BOS, or EOS where a model has no BOS.
    :param source: Whose tokenizer it is, in a few words; kept with the result.
    :param vocab_size: Ids without added tokens; None where the source does not say.
    """

    encode: Callable[[str], list[int]]
    prefix_token_id: int
    source: str
    vocab_size: int | None = None


@dataclass(frozen=True, slots=True)
class VocabSize:
    """Ids 0 … size-1 may be sent. `source` says who said so."""

    size: int
    source: str


def find_tokenizer(option: str | None, endpoint: Endpoint) -> Tokenizer:
    """Find the tokenizer of the served model.

    `--tokenizer`; else the server's /tokenize; else the folder that the server names; else the hub. Ids are
    remembered, so a corpus is tokenised once however often it is measured.

    :param option: `--tokenizer`: a folder, or a name at the hub.
    :raises VocabularyError: None is found, or none with a prefix token.
    """
    if option is not None:
        try:
            return _from_files(_read(option), "--tokenizer ")
        except TokenizerNotFoundError as error:
            raise VocabularyError(f"--tokenizer {option}: {error}; give a folder or a name at the hub") from None
    tried = []
    for source in (_from_server, _from_folder, _from_hub):
        try:
            return source(endpoint)
        except TokenizerNotFoundError as error:
            tried.append(str(error))
    raise VocabularyError(
        f"no tokenizer for {endpoint.model} at {endpoint.url}: {'; '.join(tried)}. "
        "Name one with --tokenizer NAME|PATH, or leave the gate out with --accuracy off"
    )


def find_vocab_size(option: int | None, endpoint: Endpoint, tokenizer: Tokenizer | None = None) -> VocabSize:
    """Find how many ids prompts are drawn from. Never by trying: an id too large kills an SGLang server.

    `--vocab-size`; else what the server says; else the tokenizer's or the model folder's, without added tokens; else
    a table of known models; else the hub.

    :param tokenizer: The one that was found, if any was looked for.
    :raises VocabularyError: Nobody knows, or `--vocab-size` is not positive.
    """
    if option is not None:
        if option < 1:
            raise VocabularyError(f"--vocab-size must be at least 1, got {option}")
        return VocabSize(option, "--vocab-size")
    said = endpoint.info.get("vocab_size")
    if isinstance(said, int) and not isinstance(said, bool) and said > 0:
        return VocabSize(said, f"vocab_size of {endpoint.url}/server_info")
    if tokenizer is not None and tokenizer.vocab_size is not None:
        return VocabSize(tokenizer.vocab_size, tokenizer.source)
    for name in endpoint.names:
        folder = _folder(name)
        if folder is not None and folder.vocab_size is not None:
            return VocabSize(folder.vocab_size, folder.source)
    for name in endpoint.names:
        for pattern, size in KNOWN_VOCABULARIES:
            if pattern.match(name.rstrip("/").rpartition("/")[2].lower()):
                return VocabSize(size, f"known vocabulary of {name}")
    tried = []
    for name in endpoint.names:
        try:
            files = read_hub(name)
        except TokenizerNotFoundError as error:
            tried.append(str(error))
            continue
        if files.vocab_size is not None:
            return VocabSize(files.vocab_size, files.source)
    raise VocabularyError(
        f"the vocabulary of {endpoint.model} at {endpoint.url} is not known: {'; '.join(tried) or 'no file says'}. "
        "Say it with --vocab-size N, or name the model's tokenizer with --tokenizer NAME|PATH"
    )


def _read(name: str) -> TokenizerFiles:
    return read_folder(Path(name)) if _is_path(name) else read_hub(name)


def _is_path(name: str) -> bool:
    """Whether `name` can only be, or is, a folder here: the hub is not asked for it."""
    return name.startswith(("/", ".", "~")) or Path(name).exists()


def _folder(name: str) -> TokenizerFiles | None:
    try:
        return read_folder(Path(name)) if _is_path(name) else None
    except TokenizerNotFoundError:
        return None


def _from_files(files: TokenizerFiles, prefix: str = "") -> Tokenizer:
    if files.encode is None:
        raise TokenizerNotFoundError(f"{files.source} has no tokenizer")
    if files.prefix_token_id is None:
        raise TokenizerNotFoundError(f"{files.source} names neither a BOS nor an EOS token")
    return Tokenizer(cache(files.encode), files.prefix_token_id, prefix + files.source, files.vocab_size)


def _from_folder(endpoint: Endpoint) -> Tokenizer:
    folders = [name for name in endpoint.names if _is_path(name)]
    if not folders:
        raise TokenizerNotFoundError("the server names no folder of this machine")
    return _first(folders)


def _from_hub(endpoint: Endpoint) -> Tokenizer:
    names = [name for name in endpoint.names if not _is_path(name)]
    if not names:
        raise TokenizerNotFoundError("its name is a path, so the hub has none")
    return _first(names)


def _first(names: list[str]) -> Tokenizer:
    """The tokenizer of the first name that has one; the errors of all, if none has."""
    errors = []
    for name in names:
        try:
            return _from_files(_read(name))
        except TokenizerNotFoundError as error:
            errors.append(str(error))
    raise TokenizerNotFoundError("; ".join(errors))


def _from_server(endpoint: Endpoint) -> Tokenizer:
    """Let the server tokenise; the prefix token comes from what it says, or from the model's files."""
    url = f"{endpoint.url}/tokenize"

    def encode(text: str, *, special: bool = False) -> list[int]:
        payload = {"model": endpoint.model, "prompt": text, "add_special_tokens": special}
        try:
            with requests.Session() as session:
                session.trust_env = not is_loopback(endpoint.url)
                reply = session.post(url, json=payload, timeout=TOKENIZE_TIMEOUT_S)
            tokens = reply.json().get("tokens") if reply.status_code == 200 else None
        # AttributeError: the reply is JSON, but no object.
        except (requests.RequestException, ValueError, AttributeError) as error:
            raise TokenizerNotFoundError(f"{url} failed ({type(error).__name__})") from None
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise TokenizerNotFoundError(f"{url} returned no token ids (HTTP {reply.status_code})")
        return tokens

    plain, special = encode("a"), encode("a", special=True)
    added = special[0] if special[1:] == plain else None
    prefix = _prefix_token_id(endpoint, added)
    if prefix in plain:
        raise TokenizerNotFoundError(f"{url} adds special tokens although it is asked not to")
    return Tokenizer(cache(encode), prefix, url)


def _prefix_token_id(endpoint: Endpoint, added: int | None) -> int:
    """BOS as the server says; as its folder says; as its /tokenize adds; as the hub says."""
    said = endpoint.info.get("bos_token_id")
    if isinstance(said, int):
        return said
    for name in endpoint.names:
        folder = _folder(name)
        if folder is not None and folder.prefix_token_id is not None:
            return folder.prefix_token_id
    if added is not None:
        return added
    for name in endpoint.names:
        if _is_path(name):
            continue
        try:
            prefix = read_hub(name).prefix_token_id
        except TokenizerNotFoundError:
            continue
        if prefix is not None:
            return prefix
    raise TokenizerNotFoundError(
        f"{endpoint.url}/tokenize works, but nothing says which token a text begins with (BOS, else EOS)"
    )
