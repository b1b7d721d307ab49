"""Prompts that no prefix cache has seen, and the requests that carry them."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.core.config import ALL_SCENARIOS, Point, Scenario, SweepConfig
from pytest_dsr1.load.client import Target
from pytest_dsr1.load.prompts import plan_prompts, render_requests

V = 128_000
SWEEP = SweepConfig(scenarios=ALL_SCENARIOS)
SMALL = SweepConfig(scenarios=(Scenario(16, 8), Scenario(32, 8)), concurrencies=(1, 4), num_prompts=10)


def test_prompts_are_runs_of_consecutive_ids() -> None:
    """Id j of a prompt is (start + j) mod V."""
    prompts = plan_prompts(SMALL, V).at(SMALL.points[3])
    for prompt in prompts:
        np.testing.assert_array_equal(prompt.ids(V), (prompt.first + np.arange(32)) % V)
    config = replace(SMALL, scenarios=(Scenario(200, 8),))
    for prompt in plan_prompts(config, 100).at(config.points[0]):
        np.testing.assert_array_equal(prompt.ids(100), (prompt.first + np.arange(200)) % 100)


def test_no_start_is_drawn_twice_in_a_session() -> None:
    """All 15 configurations, warm-ups included, start with ids of their own."""
    plan = plan_prompts(SWEEP, V)
    starts = [prompt.first for point in SWEEP.points for prompt in plan.at(point)]
    assert len(starts) == 3 * (50 + 2) * 124 - 30 * 124
    assert len(set(starts)) == len(starts)


def test_a_small_vocabulary_has_pairs() -> None:
    """With fewer ids than prompts, the first two ids of each prompt are a unique pair."""
    plan = plan_prompts(SMALL, 40)
    prompts = [prompt for point in SMALL.points for prompt in plan.at(point)]
    assert len(prompts) == 60
    heads = {tuple(prompt.ids(40)[:2].tolist()) for prompt in prompts}
    assert len(heads) == len(prompts)
    for prompt in prompts:
        ids = prompt.ids(40)
        np.testing.assert_array_equal(ids[1:], (ids[1] + np.arange(len(ids) - 1)) % 40)


def test_all_pairs_can_be_used_up() -> None:
    """As many prompts as pairs is the most a session can have."""
    config = replace(SMALL, scenarios=(Scenario(8, 8),), concurrencies=(2,), num_prompts=60)
    assert len(set(map(tuple, plan_prompts(config, 8).pairs.tolist()))) == 64
    with pytest.raises(ValueError, match=r"65 prompts .* only 64 pairs"):
        plan_prompts(replace(config, num_prompts=61), 8)


def test_prompts_of_one_token_cannot_be_pairs() -> None:
    """An ISL that allows prompts of one token is refused if pairs are needed."""
    config = replace(SMALL, scenarios=(Scenario(3, 8),), random_range_ratio=0.5)
    with pytest.raises(ValueError, match=r"ISL 3 at range ratio 0\.5 .* longer ISL"):
        plan_prompts(config, 20)
    assert min(prompt.input_tokens for prompt in plan_prompts(config, V).at(config.points[0])) >= 1


@pytest.mark.parametrize("vocab_size", [V, 80, 40], ids=["ids", "the last ids", "pairs"])
def test_points_that_a_test_names_later(vocab_size: int) -> None:
    """Their prompts begin like none before; those of the sweep stay as they are."""
    before = plan_prompts(SMALL, vocab_size)
    later = (Point(Scenario(16, 8), 2), Point(Scenario(64, 8), 1))
    plan = before.with_point(later[0]).with_point(later[1]).with_point(later[0])
    assert [plan.at(point) for point in SMALL.points] == [before.at(point) for point in SMALL.points]
    heads = [tuple(prompt.ids(vocab_size)[:2]) for point in (*SMALL.points, *later) for prompt in plan.at(point)]
    assert len(heads) == len(set(heads)) == 60 + 14 + 12
    if vocab_size == V:
        assert len({head[0] for head in heads}) == len(heads)


def test_no_room_for_a_later_point() -> None:
    """Every pair is taken, or the prompts have one token."""
    config = replace(SMALL, scenarios=(Scenario(8, 8),), concurrencies=(2,), num_prompts=60)
    with pytest.raises(ValueError, match="isl8-osl8-conc4 needs 68 prompts"):
        plan_prompts(config, 8).with_point(Point(Scenario(8, 8), 4))
    with pytest.raises(ValueError, match="isl1-osl8-conc1 needs 12 prompts"):
        plan_prompts(SMALL, 60).with_point(Point(Scenario(1, 8), 1))


def test_a_vocabulary_has_tokens() -> None:
    """No ids can be drawn from nothing."""
    with pytest.raises(ValueError, match="at least 1, got 0"):
        plan_prompts(SMALL, 0)


OUTSIDE = (Point(Scenario(16, 8), 9), Point(Scenario(24, 8), 1))


def test_a_point_alone_gets_what_it_has_in_the_sweep() -> None:
    """A resumed or selected point has the same prompts, whatever was asked for before."""
    whole, alone = plan_prompts(SMALL, V), plan_prompts(SMALL, V)
    for point in SMALL.points[:3]:
        whole.at(point)
    assert whole.at(SMALL.points[3]) == alone.at(SMALL.points[3])


def test_counts_are_those_of_the_config() -> None:
    """Two warm-ups a slot, and the formula's number of measured requests."""
    prompts = plan_prompts(SWEEP, V).at(Point(Scenario(1024, 8192), 16))
    assert (len(prompts.warmups), len(prompts.measured)) == (32, 320)


@given(ratio=st.floats(0.0, 1.0), isl=st.integers(1, 50), osl=st.integers(1, 50))
def test_lengths_are_between_the_ratio_and_the_length(ratio: float, isl: int, osl: int) -> None:
    """Both lengths are integers from floor(R L), but at least 1, to L."""
    config = replace(SMALL, scenarios=(Scenario(isl, osl),), random_range_ratio=ratio)
    for prompt in plan_prompts(config, V).at(config.points[1]):
        assert max(1, int(ratio * isl)) <= prompt.input_tokens <= isl
        assert max(1, int(ratio * osl)) <= prompt.output_tokens <= osl
        assert len(prompt.ids(V)) == prompt.input_tokens


def test_lengths_take_every_value() -> None:
    """Both ends of the range are drawn."""
    config = replace(SMALL, random_range_ratio=0.75, num_prompts=200)
    measured = plan_prompts(config, V).at(config.points[0]).measured
    assert {prompt.input_tokens for prompt in measured} == {12, 13, 14, 15, 16}
    assert {prompt.output_tokens for prompt in measured} == {6, 7, 8}


def test_the_seed_decides_and_nothing_else_does() -> None:
    """Only the seed decides the prompts; global generators are not used."""
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), str(np.random.get_state())
    hashes = [plan_prompts(replace(SMALL, prompt_seed=seed), V).at(SMALL.points[0]).sha256 for seed in (7, 7, 8)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert before == (random.getstate(), str(np.random.get_state()))


def test_the_hash_is_of_lengths_and_ids() -> None:
    """It can be had from the ids alone, and differs from point to point."""
    plan = plan_prompts(SMALL, V)
    assert len({plan.at(point).sha256 for point in SMALL.points}) == 4


@pytest.mark.parametrize("vocab_size", [40, V])
def test_requests_ask_for_the_prompt_as_it_is(vocab_size: int) -> None:
    """A request is HTTP/1.1 with the ids as JSON; greedy, streamed, with usage."""
    config = replace(SMALL, random_range_ratio=0.2)
    prompts = plan_prompts(config, vocab_size).at(config.points[3])
    requests = render_requests("/prefix/v1/completions", "localhost:8888", 'a "model"', prompts)
    for prompt, request in zip(prompts, requests, strict=True):
        head, _, body = b"".join(request.buffers).partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        assert first == "POST /prefix/v1/completions HTTP/1.1"
        assert headers["Host"] == "localhost:8888"
        assert int(headers["Content-Length"]) == len(body)
        assert json.loads(body) == {
            "model": 'a "model"',
            "prompt": prompt.ids(vocab_size).tolist(),
            "max_tokens": prompt.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        assert (request.input_tokens, request.output_tokens) == (prompt.input_tokens, prompt.output_tokens)


def test_a_prompt_of_one_token_has_no_comma() -> None:
    """The shortest prompt is a list of one id."""
    config = replace(SMALL, scenarios=(Scenario(1, 1),))
    (request, *_) = render_requests("/", "h", "m", plan_prompts(config, V).at(config.points[0]))
    body = b"".join(request.buffers).partition(b"\r\n\r\n")[2]
    assert len(json.loads(body)["prompt"]) == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8888", Target("127.0.0.1", 8888, "127.0.0.1:8888", "/v1/completions", False)),
        ("https://user:word@host/", Target("host", 443, "host", "/v1/completions", True)),
        ("http://[::1]:80/x", Target("::1", 80, "[::1]:80", "/x/v1/completions", False)),
    ],
)
def test_targets(url: str, expected: Target) -> None:
    """Host, port, Host header and path come from the URL; its credentials are dropped."""
    assert Target.from_url(url) == expected


@pytest.mark.parametrize("url", ["localhost:8888", "ftp://host", "http://", ""])
def test_what_is_no_url_is_refused(url: str) -> None:
    """The error shows what a URL looks like."""
    with pytest.raises(ValueError, match="should look like http://127"):
        Target.from_url(url)
