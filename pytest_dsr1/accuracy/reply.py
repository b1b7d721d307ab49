"""Checks the log-probabilities that a server returns for an echoed prompt.

A wrong reply can still give a plausible perplexity. A server that returns the log-probability of the generated token
only gives a perfect 1.0, and one that truncates prompts gives a value that is too good. So every entry is checked.
"""

from __future__ import annotations

import json
import math
from typing import Annotated

import msgspec

from pytest_dsr1.accuracy.documents import AccuracyError

#: Largest value above 0 that rounding can cause in a log-softmax computed in half precision and sent as decimals.
POSITIVE_SLACK = 1e-4

_CACHE_ADVICE = (
    "a server returns no log-probabilities for a prefix from its cache; "
    "start it without prefix cache (SGLang: --disable-radix-cache), or flush the cache first"
)


class _Logprobs(msgspec.Struct):
    token_logprobs: list[object]


class _Choice(msgspec.Struct):
    logprobs: _Logprobs


class _Completion(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1, max_length=1)]


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens_details: _PromptDetails | None = None


def log_likelihood(body: bytes, prompt_tokens: int, context_tokens: int) -> float:
    """Sum the log-probabilities of a prompt's scored tokens.

    :param body: The reply to a completion request with `echo`, `logprobs: 1` and `max_tokens: 1`.
    :param prompt_tokens: Length of the prompt that was sent. The reply must have one entry more, for the generated
        token.
    :param context_tokens: Number of tokens at the front that are not scored; at least 1, since nothing predicts the
        first.
    :raises AccuracyError: if the number of entries is wrong, or an entry of the prompt after the first is null, not
        finite or positive.
    """
    reply = _parsed(body)
    entries = _token_logprobs(reply, body)
    if len(entries) != prompt_tokens + 1:
        raise AccuracyError(_miscounted(len(entries), prompt_tokens, _cached(reply)))
    scored = []
    # The last entry belongs to the generated token.
    for position, entry in enumerate(entries[1:-1], 1):
        if entry is None:
            raise AccuracyError(
                f"log-probability {position} of {prompt_tokens} is null, only the first may be{_cached(reply)}: "
                + _CACHE_ADVICE
            )
        if isinstance(entry, bool) or not isinstance(entry, int | float):
            raise AccuracyError(f"log-probability {position} of {prompt_tokens} is {entry!r}, not a number")
        if not math.isfinite(entry):
            raise AccuracyError(
                f"log-probability {position} of {prompt_tokens} is {entry}, not finite: "
                "the model gives no probability for a token of plain text (an overflow, or damaged weights)"
            )
        if entry > POSITIVE_SLACK:
            raise AccuracyError(
                f"log-probability {position} of {prompt_tokens} is {entry}, above 0, but no probability exceeds 1: "
                "the server returns other values (logits, or negated log-probabilities)"
            )
        scored.append(entry)
    return math.fsum(scored[context_tokens - 1 :])


def _parsed(body: bytes) -> object:
    try:
        # Python's own parser, since servers written in Python send NaN and Infinity, which are not JSON.
        return json.loads(body)
    except ValueError as error:
        raise AccuracyError(f"the reply is not JSON ({error}): {_excerpt(body)}") from None


def _token_logprobs(reply: object, body: bytes) -> list[object]:
    try:
        return msgspec.convert(reply, _Completion).choices[0].logprobs.token_logprobs
    except msgspec.ValidationError as error:
        raise AccuracyError(
            f"the reply has no choices[0].logprobs.token_logprobs ({error}): the server does not support echo with "
            f"logprobs on /v1/completions; use one that does, or turn the gate off (--accuracy off): {_excerpt(body)}"
        ) from None


def _miscounted(found: int, prompt_tokens: int, cached: str) -> str:
    counts = f"{found} log-probabilities for a prompt of {prompt_tokens} tokens, expected {prompt_tokens + 1}"
    if found <= 1:
        return f"{counts}: those of the prompt are missing, so the server ignores echo"
    if found <= prompt_tokens:
        return f"{counts}{cached}: the server truncated the prompt, or {_CACHE_ADVICE}"
    return f"{counts}: the server adds tokens of its own (a BOS?) to a prompt of token ids"


def _cached(reply: object) -> str:
    """The number of cached tokens by the reply's usage, as a remark in parentheses."""
    try:
        usage = msgspec.convert(reply.get("usage"), _Usage) if isinstance(reply, dict) else _Usage()
    except msgspec.ValidationError:
        return ""
    details = usage.prompt_tokens_details
    return f" ({details.cached_tokens} tokens came from its cache)" if details and details.cached_tokens else ""


def _excerpt(body: bytes) -> str:
    text = body[:200].decode(errors="replace")
    return repr(text if len(body) <= 200 else text + "…")
