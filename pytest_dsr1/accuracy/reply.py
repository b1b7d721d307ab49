"""Checks on what a server returns for an echoed prompt: a log-likelihood, or an error that says what is wrong.

A perplexity can be computed from nearly anything. A server that returns the generated token's log-probability alone
gives a perfect 1.0, one that cuts prompts short gives a better one than the truth; so everything is counted first.
"""

from __future__ import annotations

import json
import math

from pytest_dsr1.accuracy import AccuracyError

#: What rounding may leave above 0 in a log-softmax computed in half precision and sent as decimals.
POSITIVE_SLACK = 1e-4

_CACHE_ADVICE = (
    "prefixes that a server has cached come back without log-probabilities; "
    "start it without prefix cache (SGLang: --disable-radix-cache), or flush it first"
)


def log_likelihood(body: bytes, prompt_tokens: int, context_tokens: int) -> float:
    """Sum the log-probabilities of a prompt's scored tokens.

    :param body: The reply to a completion with `echo`, `logprobs: 1` and `max_tokens: 1`.
    :param prompt_tokens: Length of the prompt as it was sent. One entry per token is due, and one for the generated.
    :param context_tokens: So many tokens at the front are given and not scored, at least 1: nothing predicts the first.
    :raises AccuracyError: A wrong count, or an entry of the prompt but the first is null, not finite, or positive.
    """
    entries = _token_logprobs(body)
    if len(entries) != prompt_tokens + 1:
        raise AccuracyError(_miscounted(len(entries), prompt_tokens, body))
    scored = []
    # The last entry belongs to the generated token.
    for position, entry in enumerate(entries[1:-1], 1):
        if entry is None:
            raise AccuracyError(
                f"log-probability {position} of {prompt_tokens} is null, only the first may be{_cached(body)}: "
                + _CACHE_ADVICE
            )
        if isinstance(entry, bool) or not isinstance(entry, int | float):
            raise AccuracyError(f"log-probability {position} of {prompt_tokens} is {entry!r}, not a number")
        if not math.isfinite(entry):
            raise AccuracyError(
                f"log-probability {position} of {prompt_tokens} is {entry}, not finite: "
                "the model computes no probability for a token of plain text (an overflow, or a broken weight)"
            )
        if entry > POSITIVE_SLACK:
            raise AccuracyError(
                f"log-probability {position} of {prompt_tokens} is {entry}, above 0: no probability exceeds 1; "
                "the server returns something else (logits, or negated values)"
            )
        scored.append(entry)
    return math.fsum(scored[context_tokens - 1 :])


def _token_logprobs(body: bytes) -> list[object]:
    reply = _parsed(body)
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != 1:
        raise AccuracyError(f"the reply has no single choice: {_shown(body)}")
    logprobs = choices[0].get("logprobs") if isinstance(choices[0], dict) else None
    entries = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(entries, list):
        raise AccuracyError(
            "the reply has no choices[0].logprobs.token_logprobs: the server does not support echo with logprobs "
            f"on /v1/completions; serve with one that does, or leave the gate out (--accuracy off): {_shown(body)}"
        )
    return entries


def _parsed(body: bytes) -> dict[str, object]:
    try:
        reply = json.loads(body)
    except ValueError as error:
        raise AccuracyError(f"the reply is not JSON ({error}): {_shown(body)}") from None
    if not isinstance(reply, dict):
        raise AccuracyError(f"the reply is not an object: {_shown(body)}")
    return reply


def _miscounted(found: int, prompt_tokens: int, body: bytes) -> str:
    due = f"{found} log-probabilities for a prompt of {prompt_tokens} tokens, expected {prompt_tokens + 1}"
    if found <= 1:
        return f"{due}: those of the prompt are missing, so the server ignores echo"
    if found <= prompt_tokens:
        return f"{due}{_cached(body)}: the prompt was cut short, or {_CACHE_ADVICE}"
    return f"{due}: the server adds tokens of its own (a BOS?) to a prompt of token ids"


def _cached(body: bytes) -> str:
    """What the reply's usage says of cached tokens, to go behind an observation."""
    usage = _parsed(body).get("usage")
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return f" ({cached} tokens came from its cache)" if cached else ""


def _shown(body: bytes) -> str:
    text = body[:200].decode(errors="replace")
    return repr(text if len(body) <= 200 else text + "…")
