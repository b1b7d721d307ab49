"""The protocol of /v1/completions, in the form of SGLang's: requests and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import orjson
from msgspec import Meta

from pytest_dsr1.reference.scheduler import Scores
from pytest_dsr1.reference.text import Vocabulary

T = TypeVar("T")

#: The default of OpenAI's API, and of SGLang.
DEFAULT_MAX_TOKENS = 16


class ApiError(Exception):
    """An error to answer a request with.

    :param message: What is wrong with the request.
    :param status: HTTP status of the answer.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status

    def body(self) -> bytes:
        """The error object as SGLang writes it: a flat object with the status in `code`."""
        kind = {400: "BadRequestError", 404: "NotFoundError"}.get(self.status, "InternalServerError")
        return orjson.dumps({"object": "error", "message": str(self), "type": kind, "param": None, "code": self.status})


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A valid request.

    :param prompts: The ids of each prompt; each prompt gets one choice.
    :param logprobs: Number of alternatives to list for each token; None: no log-probabilities.
    :param continuous_usage: Whether every event of a stream carries the usage so far.
    """

    model: str
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    temperature: float
    seed: int | None
    stops: tuple[str, ...]
    ignore_eos: bool
    echo: bool
    logprobs: int | None
    stream: bool
    include_usage: bool
    continuous_usage: bool


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class _Fields(msgspec.Struct):
    """The fields of a body that the engine reads; see `decode_body`."""

    prompt: object = None
    model: str = ""
    max_tokens: Annotated[int, Meta(ge=1)] = DEFAULT_MAX_TOKENS
    temperature: Annotated[float, Meta(ge=0)] = 1.0
    seed: Annotated[int, Meta(ge=0)] | None = None
    stop: str | list[str] = ""
    ignore_eos: bool = False
    echo: bool = False
    logprobs: Annotated[int, Meta(ge=0)] | None = None
    stream: bool = False
    stream_options: _StreamOptions = msgspec.field(default_factory=_StreamOptions)
    # The engine supports no other values of these.
    n: Annotated[int, Meta(ge=1, le=1)] = 1
    best_of: Annotated[int, Meta(ge=1, le=1)] = 1
    top_p: Annotated[float, Meta(ge=1, le=1)] = 1.0


def decode_body(body: bytes, kind: type[T]) -> T:
    """Decode the JSON object of a request.

    Unknown fields are ignored, and a field that is null counts as absent.

    :raises ApiError: if the body is not a JSON object, or a field has a wrong type or value; names the field.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
        return msgspec.convert({name: value for name, value in fields.items() if value is not None}, kind)
    # UnicodeDecodeError: a string is not UTF-8. RecursionError: the body is nested too deeply.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"Invalid request body: {error}.") from error


def parse_request(
    body: bytes, vocabulary: Vocabulary, vocab_size: int, context_length: int, model: str
) -> CompletionRequest:
    """Validate a request and turn its prompts into ids.

    The name of another model is not an error; it is repeated in the answer.

    :param model: Name of the model in the answer if the request has none.
    :raises ApiError: if the request cannot be served; names the field.
    """
    fields = decode_body(body, _Fields)
    if fields.logprobs is not None and fields.logprobs > vocab_size:
        raise ApiError(f"logprobs must be at most the vocabulary size ({vocab_size}), got {fields.logprobs}.")
    prompts = tuple(_prompts(fields.prompt, vocabulary))
    for prompt in prompts:
        _check_prompt(prompt, fields.max_tokens, vocab_size, context_length)
    stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop
    return CompletionRequest(
        model=fields.model or model,
        prompts=prompts,
        max_tokens=fields.max_tokens,
        temperature=fields.temperature,
        seed=fields.seed,
        stops=tuple(stop for stop in stops if stop),
        ignore_eos=fields.ignore_eos,
        echo=fields.echo,
        logprobs=fields.logprobs,
        stream=fields.stream,
        include_usage=bool(fields.stream_options.include_usage),
        continuous_usage=bool(fields.stream_options.continuous_usage_stats),
    )


def _prompts(prompt: object, vocabulary: Vocabulary) -> list[tuple[int, ...]]:
    """The ids of a prompt in one of its four forms: text, ids, texts, lists of ids."""
    if isinstance(prompt, str):
        return [tuple(vocabulary.encode(prompt))]
    if isinstance(prompt, list) and prompt:
        if _are_ids(prompt):
            return [tuple(prompt)]
        if all(isinstance(item, str) for item in prompt):
            return [tuple(vocabulary.encode(item)) for item in prompt]
        if all(isinstance(item, list) and _are_ids(item) for item in prompt):
            return [tuple(item) for item in prompt]
    raise ApiError("prompt must be a string, a list of token ids, a list of strings or a list of lists of token ids.")


def _are_ids(items: list[Any]) -> bool:
    return all(type(item) is int for item in items)


def _check_prompt(prompt: tuple[int, ...], max_tokens: int, vocab_size: int, context_length: int) -> None:
    if not prompt:
        raise ApiError("The prompt is empty: at least one token is needed.")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        wrong = next(id_ for id_ in prompt if not 0 <= id_ < vocab_size)
        raise ApiError(f"The prompt has the token id {wrong}; the vocabulary's ids are 0 to {vocab_size - 1}.")
    if len(prompt) >= context_length:
        raise ApiError(
            f"The input ({len(prompt)} tokens) is longer than the model's context length ({context_length} tokens)."
        )
    if len(prompt) + max_tokens > context_length:
        raise ApiError(
            f"The input ({len(prompt)} tokens) and max_tokens ({max_tokens}) together exceed the model's context "
            f"length ({context_length} tokens)."
        )


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The usage object; no token is ever taken from a cache."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "reasoning_tokens": 0,
    }


def choice(
    index: int,
    text: str,
    logprobs: Mapping[str, Any] | None,
    finish_reason: str | None,
    matched_stop: str | int | None,
) -> dict[str, Any]:
    """One of a response's `choices`."""
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
        "matched_stop": matched_stop,
    }


def completion(
    id_: str, created: int, model: str, choices: Sequence[Mapping[str, Any]], usage_: Mapping[str, Any] | None
) -> bytes:
    """A response, or one event of a streamed response."""
    return orjson.dumps(
        {
            "id": id_,
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": choices,
            "usage": usage_,
        }
    )


def logprobs_object(
    vocabulary: Vocabulary, tokens: Sequence[int], scores: Sequence[Scores], *, unscored_first: bool, top: int
) -> dict[str, Any]:
    """The `logprobs` object of OpenAI's API: lists with one entry per token.

    :param tokens: Ids of the prompt and of the generated tokens.
    :param scores: Scores of these tokens, in order.
    :param unscored_first: Whether the first token has no score, because nothing predicts it.
    :param top: Number of alternatives to list; with 0, `top_logprobs` is empty.
    """
    texts = [vocabulary.decode([token]) for token in tokens]
    values: list[float | None] = [None] if unscored_first else []
    tops: list[dict[str, float] | None] = [None] if unscored_first and top else []
    for part in scores:
        values += part.logprobs.tolist()
        if top:
            for ids, logprobs in zip(part.top_ids.tolist(), part.top_logprobs.tolist(), strict=True):
                alternatives: dict[str, float] = {}
                for id_, logprob in zip(ids, logprobs, strict=True):
                    # Different ids may have the same text (parts of characters): the most likely one is kept.
                    alternatives.setdefault(vocabulary.decode([id_]), logprob)
                tops.append(alternatives)
    return {"text_offset": [-1] * len(texts), "token_logprobs": values, "tokens": texts, "top_logprobs": tops}
