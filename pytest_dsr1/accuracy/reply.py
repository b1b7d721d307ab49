"""Checks the log-probabilities that a server returns for an echoed prompt.

A wrong reply can still give a plausible perplexity. A server that returns the log-probability of the generated token
only gives a perfect 1.0, and one that truncates prompts gives a value that is too good. So every entry is checked.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import msgspec

from pytest_dsr1.accuracy.documents import AccuracyError
from pytest_dsr1.core.text import shown

#: Largest value above 0 that rounding can cause in a log-softmax computed in half precision and sent as decimals.
POSITIVE_SLACK = 1e-4

_CACHE_ADVICE = (
    "a server returns no log-probabilities for a prefix from its cache; "
    "start it without prefix cache (SGLang: --disable-radix-cache), or flush the cache first"
)


class _Logprobs(msgspec.Struct):
    token_logprobs: list[Any]


class _Choice(msgspec.Struct):
    logprobs: _Logprobs


class _Completion(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1, max_length=1)]
    usage: Any = None


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
    try:
        # Python's own parser, since servers written in Python send NaN and Infinity, which are not JSON.
        reply = msgspec.convert(json.loads(body), _Completion)
    except msgspec.ValidationError as error:
        raise AccuracyError(
            f"the reply has no choices[0].logprobs.token_logprobs ({error}): the server does not support echo with "
            f"logprobs on /v1/completions; use one that does, or turn the gate off (--accuracy off): {shown(body, 200)}"
        ) from None
    except ValueError as error:
        raise AccuracyError(f"the reply is not JSON ({error}): {shown(body, 200)}") from None
    entries, cached = reply.choices[0].logprobs.token_logprobs, _cached(reply.usage)
    if len(entries) != prompt_tokens + 1:
        raise AccuracyError(
            f"{len(entries)} log-probabilities for a prompt of {prompt_tokens} tokens, expected {prompt_tokens + 1}"
            + _miscounted(len(entries), prompt_tokens, cached)
        )
    # The last entry belongs to the generated token.
    for position, entry in enumerate(entries[1:-1], 1):
        if problem := _problem(entry, cached):
            raise AccuracyError(f"log-probability {position} of {prompt_tokens} is {problem}")
    return math.fsum(entries[context_tokens:-1])


def _miscounted(found: int, prompt_tokens: int, cached: str) -> str:
    if found <= 1:
        return ": those of the prompt are missing, so the server ignores echo"
    if found <= prompt_tokens:
        return f"{cached}: the server truncated the prompt, or {_CACHE_ADVICE}"
    return ": the server adds tokens of its own (a BOS?) to a prompt of token ids"


def _problem(entry: object, cached: str) -> str:
    """What is wrong with a log-probability; empty if nothing."""
    if entry is None:
        return f"null, only the first may be{cached}: {_CACHE_ADVICE}"
    if isinstance(entry, bool) or not isinstance(entry, int | float):
        return f"{entry!r}, not a number"
    if not math.isfinite(entry):
        return (
            f"{entry}, not finite: "
            "the model gives no probability for a token of plain text (an overflow, or damaged weights)"
        )
    if entry > POSITIVE_SLACK:
        return (
            f"{entry}, above 0, but no probability exceeds 1: "
            "the server returns other values (logits, or negated log-probabilities)"
        )
    return ""


def _cached(usage: object) -> str:
    """The number of cached tokens by the reply's usage, as a remark in parentheses."""
    try:
        tokens = msgspec.convert(usage, dict[str, Any])["prompt_tokens_details"]["cached_tokens"]
    except (msgspec.ValidationError, LookupError, TypeError):
        return ""
    return f" ({tokens} tokens came from its cache)" if tokens else ""
