"""The protocol of /v1/completions, in SGLang's shapes: what a request may say, and what answers look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pytest_dsr1.reference.scheduler import Scores
from pytest_dsr1.reference.text import Vocabulary

#: OpenAI's default, which SGLang shares.
DEFAULT_MAX_TOKENS = 16


class ApiError(Exception):
    """A request that is answered with an error.

    :param message: What is wrong with it.
    :param status: HTTP status.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status

    def body(self) -> bytes:
        """The error object, as SGLang writes it: the fields at top level, the status in `code`."""
        kind = {400: "BadRequestError", 404: "NotFoundError"}.get(self.status, "InternalServerError")
        return orjson.dumps({"object": "error", "message": str(self), "type": kind, "param": None, "code": self.status})


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A valid request.

    :param prompts: Ids of each prompt; each gets a choice of its own.
    :param logprobs: How many alternatives to list beside each token; None: no log-probabilities.
    :param continuous_usage: Whether every event carries the usage so far.
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


def parse_json(body: bytes) -> Mapping[str, Any]:
    """A request's body as an object.

    :raises ApiError: It is none.
    """
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(f"The request body is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ApiError(f"The request body must be a JSON object, not {type(parsed).__name__}.")
    return parsed


def parse_request(
    body: Mapping[str, Any], vocabulary: Vocabulary, vocab_size: int, context_length: int, model: str
) -> CompletionRequest:
    """Check a request and make ids of its prompts. Unknown fields are ignored, and so is another model's name.

    :param model: Name to answer with where the request names none.
    :raises ApiError: It asks for something that cannot be done; says which field.
    """
    max_tokens = _field(body, "max_tokens", int, DEFAULT_MAX_TOKENS)
    if max_tokens < 1:
        raise ApiError(f"max_tokens must be at least 1, got {max_tokens}.")
    for name in ("n", "best_of", "top_p"):
        if body.get(name, 1) not in (None, 1):
            raise ApiError(f"{name} must be 1: this engine supports no other value, got {body[name]!r}.")
    temperature = _field(body, "temperature", float, 1.0)
    if not 0 <= temperature < float("inf"):
        raise ApiError(f"temperature must be a finite number of at least 0, got {temperature}.")
    logprobs = _field(body, "logprobs", int, None)
    if logprobs is not None and not 0 <= logprobs <= vocab_size:
        raise ApiError(f"logprobs must be between 0 and the vocabulary size ({vocab_size}), got {logprobs}.")
    seed = _field(body, "seed", int, None)
    if seed is not None and seed < 0:
        raise ApiError(f"seed must be at least 0, got {seed}.")
    stops = body.get("stop")
    stops = [stops] if isinstance(stops, str) else stops or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ApiError("stop must be a string or a list of strings.")
    options: Mapping[str, Any] = _field(body, "stream_options", dict, None) or {}

    prompts = tuple(_prompts(body.get("prompt"), vocabulary))
    for prompt in prompts:
        _check_prompt(prompt, max_tokens, vocab_size, context_length)
    return CompletionRequest(
        model=_field(body, "model", str, None) or model,
        prompts=prompts,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        stops=tuple(stop for stop in stops if stop),
        ignore_eos=_field(body, "ignore_eos", bool, False),
        echo=_field(body, "echo", bool, False),
        logprobs=logprobs,
        stream=_field(body, "stream", bool, False),
        include_usage=_field(options, "include_usage", bool, False),
        continuous_usage=_field(options, "continuous_usage_stats", bool, False),
    )


def _field(body: Mapping[str, Any], name: str, kind: type[Any], default: Any) -> Any:
    """A field of the type `kind`, null counting as absent; an integer will do for a float, a boolean for no number."""
    value = body.get(name)
    if value is None:
        return default
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ApiError(f"{name} must be of type {kind.__name__}, got {type(value).__name__}.")
    return value


def _prompts(prompt: object, vocabulary: Vocabulary) -> list[tuple[int, ...]]:
    """The four forms of a prompt: text, ids, several texts, several lists of ids."""
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
    """The usage object; nothing is ever cached."""
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
    """A response, or an event of one."""
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
    """OpenAI's parallel lists.

    :param tokens: The ids, prompt and generated.
    :param scores: Of these tokens, in order, but for the first where `unscored_first`: nothing predicts it.
    :param top: Alternatives listed; 0: `top_logprobs` is empty.
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
                    # Different ids may have one text (parts of characters): the likelier keeps the place.
                    alternatives.setdefault(vocabulary.decode([id_]), logprob)
                tops.append(alternatives)
    return {"text_offset": [-1] * len(texts), "token_logprobs": values, "tokens": texts, "top_logprobs": tops}
