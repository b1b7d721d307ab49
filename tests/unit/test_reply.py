"""What an echoed prompt's log-probabilities must look like."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.accuracy import AccuracyError
from pytest_dsr1.accuracy.reply import log_likelihood

#: A prompt of five tokens, then the generated one.
ENTRIES = [None, -0.5, -0.25, -2.0, -1.0, -9.0]


def body(entries: object, **extra: object) -> bytes:
    return json.dumps({"choices": [{"index": 0, "logprobs": {"token_logprobs": entries}}], **extra}).encode()


def test_the_scored_tokens_are_added_up() -> None:
    """Context in front and the generated token behind do not count."""
    assert log_likelihood(body(ENTRIES), 5, 1) == -3.75
    assert log_likelihood(body(ENTRIES), 5, 3) == -3.0


def test_the_first_entry_may_be_anything() -> None:
    """Nothing predicts the first token: servers send null, 0 or a number."""
    assert log_likelihood(body([0.0, *ENTRIES[1:]]), 5, 1) == -3.75


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ([], "0 log-probabilities for a prompt of 5 tokens, expected 6.*ignores echo"),
        (ENTRIES[-1:], "1 log-probabilities for a prompt of 5 tokens, expected 6.*ignores echo"),
        (ENTRIES[2:], "4 log-probabilities .* truncated the prompt, .*--disable-radix-cache"),
        (ENTRIES[:-1], "5 log-probabilities for a prompt of 5 tokens, expected 6"),
        ([None, *ENTRIES], "7 log-probabilities .*tokens of its own"),
        ([None, None, *ENTRIES[2:]], "log-probability 1 of 5 is null.*--disable-radix-cache"),
        ([*ENTRIES[:4], math.nan, -1], "log-probability 4 of 5 is nan, not finite"),
        ([*ENTRIES[:4], -math.inf, -1], "log-probability 4 of 5 is -inf, not finite"),
        ([None, 0.7, *ENTRIES[2:]], "log-probability 1 of 5 is 0.7, above 0"),
        ([None, "-1", *ENTRIES[2:]], "log-probability 1 of 5 is '-1', not a number"),
    ],
)
def test_a_wrong_list_is_an_error_that_says_what_is_wrong(entries: list[Any], complaint: str) -> None:
    """Each of these makes a fine perplexity if nobody looks."""
    with pytest.raises(AccuracyError, match=complaint):
        log_likelihood(body(entries), 5, 1)


def test_null_in_the_context_is_an_error_too() -> None:
    """A cached prefix is a server that answers otherwise the next time."""
    with pytest.raises(AccuracyError, match="log-probability 2 of 5 is null"):
        log_likelihood(body([None, -1, None, -1, -1, -1]), 5, 4)


def test_cached_tokens_that_the_server_reports_are_named() -> None:
    """The cause is in the usage where a server tells it."""
    reply = body(ENTRIES[2:], usage={"prompt_tokens_details": {"cached_tokens": 2}})
    with pytest.raises(AccuracyError, match="2 tokens came from its cache"):
        log_likelihood(reply, 5, 1)


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (b"<html>", "is not JSON .*<html>"),
        (b"[]", r"Expected `object`, got `array`"),
        (b"{}", r"missing required field `choices`"),
        (b'{"choices": []}', r"length >= 1.*choices"),
        (
            b'{"choices": [{"logprobs": {"token_logprobs": []}}, {"logprobs": {"token_logprobs": []}}]}',
            r"length <= 1.*choices",
        ),
        (b'{"choices": [{"logprobs": null}]}', "does not support echo with logprobs"),
        (b'{"choices": [7]}', "does not support echo with logprobs"),
    ],
)
def test_a_reply_of_another_kind_is_shown(reply: bytes, complaint: str) -> None:
    """The error has what came instead."""
    with pytest.raises(AccuracyError, match=complaint):
        log_likelihood(reply, 5, 1)


@given(st.lists(st.floats(max_value=0, allow_infinity=False), min_size=1))
def test_any_honest_list_adds_up(scored: list[float]) -> None:
    """The sum of every valid list is the log-likelihood."""
    try:
        expected = math.fsum(scored)
    except OverflowError:
        return
    assert log_likelihood(body([None, *scored, -1.0]), len(scored) + 1, 1) == expected


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_no_reply_raises_anything_else(reply: object) -> None:
    """Whatever JSON a server sends, the error is ours."""
    with pytest.raises(AccuracyError):
        log_likelihood(json.dumps(reply).encode(), 5, 1)
