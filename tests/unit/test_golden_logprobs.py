"""The packaged model's single log-probabilities.

They reveal errors that change a perplexity by less than 3 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from pytest_dsr1.reference import model as model_module
from pytest_dsr1.reference.attention import Array
from pytest_dsr1.reference.model import Model
from pytest_dsr1.reference.process import WEIGHTS
from pytest_dsr1.reference.weights import ModelConfig, Weights
from tests import golden_logprobs

#: Largest difference of one log-probability, in nats; two processors' roundings differ by a hundredth of it.
TOLERANCE = 1e-3
CONFIG = ModelConfig.load(WEIGHTS)


def largest_difference(model: Model) -> float:
    """From what was kept, over all tokens."""
    with threadpool_limits(1):
        return max(
            float(np.abs(golden_logprobs.score(model, document["ids"]) - document["logprobs"]).max())
            for document in golden_logprobs.load()
        )


def built(config: ModelConfig) -> Model:
    return Model(config, Weights.load(WEIGHTS, config))


def test_the_packaged_model_is_the_one_that_was_measured() -> None:
    """Every log-probability as it was kept."""
    assert largest_difference(Model.load(WEIGHTS)) < TOLERANCE


@pytest.mark.parametrize(
    "wrong",
    [
        replace(CONFIG, experts_per_token=1),
        replace(CONFIG, routed_scaling=1.0),
        replace(CONFIG, groups_per_token=CONFIG.groups),
        replace(CONFIG, normalise_top_k=False),
        replace(CONFIG, norm_eps=1e-3),
        replace(CONFIG, rope_theta=9_000.0),
    ],
    ids=["top-1 for top-2", "scaling factor 1", "no group limit", "shares not normalised", "epsilon", "rope base"],
)
def test_a_wrong_setting_is_seen(wrong: ModelConfig) -> None:
    """By far more than rounding."""
    assert largest_difference(built(wrong)) > 20 * TOLERANCE


def softmax(logits: Array) -> Array:
    shares: Array = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def test_softmax_for_sigmoid_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The experts' scores are logistic functions, each for itself."""
    monkeypatch.setattr(model_module, "affinity", softmax)
    assert largest_difference(Model.load(WEIGHTS)) > 20 * TOLERANCE


def scaled_attention(weights: Weights) -> Weights:
    """As if the scale counted the part without rotation only."""
    factor = np.float32(math.sqrt((CONFIG.nope_dim + CONFIG.rope_dim) / CONFIG.nope_dim))
    return replace(weights, layers=tuple(replace(layer, query=layer.query * factor) for layer in weights.layers))


def without_selection_bias(weights: Weights) -> Weights:
    """As if the bias that balances the experts' load were forgotten."""
    layers = []
    for layer in weights.layers:
        bias = layer.feed_forward.selection_bias
        forgotten = None if bias is None else np.zeros_like(bias)
        layers.append(replace(layer, feed_forward=replace(layer.feed_forward, selection_bias=forgotten)))
    return replace(weights, layers=tuple(layers))


@pytest.mark.parametrize("change", [scaled_attention, without_selection_bias])
def test_wrong_weights_are_seen(change: Callable[[Weights], Weights]) -> None:
    """Something forgotten, or counted wrong, in what is made of the checkpoint."""
    assert largest_difference(Model(CONFIG, change(Weights.load(WEIGHTS, CONFIG)))) > 20 * TOLERANCE
