"""DeepSeek-V3's forward pass in NumPy, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pytest_dsr1.reference.attention import Array, Chunk, DecodeBatch, Ints, LatentCache, PrefillBatch
from pytest_dsr1.reference.weights import INNER_NORM_EPS, FeedForward, Layer, ModelConfig, Weights

#: From so many rows on, tokens are sorted by expert and only the chosen experts are computed. Fewer rows are faster in
#: one product with all experts.
SPARSE_FROM = 12
#: Number of tokens of a prefill step: its activations fit into a second-level cache.
PREFILL_TOKENS = 512


class Model:
    """A loaded checkpoint. It has no state of sequences: that is in a `LatentCache`."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self._weights = weights
        # In float32 throughout, as transformers computes it: at position 9,000 the rounding of the angles matters.
        steps = np.arange(0, config.rope_dim, 2, dtype=np.float32) / np.float32(config.rope_dim)
        frequencies = np.float32(1) / np.float32(config.rope_theta) ** steps
        angles = np.arange(config.context_length, dtype=np.float32)[:, None] * frequencies
        self._rotations = (np.cos(angles) + 1j * np.sin(angles)).astype(np.complex64)

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Load the model of a Hugging Face folder (config.json, model.safetensors).

        :raises CheckpointError: if there is none, or it has another architecture.
        """
        config = ModelConfig.load(folder)
        return cls(config, Weights.load(folder, config))

    def new_cache(self, slots: int, capacity: int = 256) -> LatentCache:
        """An empty cache for `slots` sequences."""
        return LatentCache(self.config.layers, slots, self.config.rope_dim, self.config.kv_lora_rank, capacity)

    def decode(self, cache: LatentCache, ids: Ints) -> Array:
        """Append one token to each of the first len(ids) slots.

        :param ids: shape (slots,)
        :return: Logits. shape (slots, vocab)
        """
        return self._logits(self._forward(DecodeBatch(cache, len(ids)), ids))

    def prefill(self, cache: LatentCache, chunks: Sequence[Chunk], ids: Ints) -> Array:
        """Append a chunk to each of several slots.

        :param ids: The tokens of the chunks, concatenated. shape (sum of counts,)
        :return: Logits of the chunks' wanted positions, concatenated. shape (sum of wanted, vocab)
        """
        return self._logits(self._forward(PrefillBatch(cache, chunks), ids))

    def logprobs(self, ids: npt.ArrayLike) -> Array:
        """Log-probabilities of every token after each prefix of `ids`.

        :param ids: shape (tokens,)
        :return: shape (tokens, vocab)
        """
        tokens = np.asarray(ids, np.intp)
        cache = self.new_cache(1, len(tokens))
        rows = []
        for start in range(0, len(tokens), PREFILL_TOKENS):
            chunk = tokens[start : start + PREFILL_TOKENS]
            rows.append(log_softmax(self.prefill(cache, [Chunk(0, len(chunk), len(chunk))], chunk)))
        return np.concatenate(rows)

    def _forward(self, batch: DecodeBatch | PrefillBatch, ids: Ints) -> Array:
        """Hidden states of the batch's output rows, before the final norm.

        :return: shape (outputs, hidden)
        """
        hidden: Array = self._weights.embedding[ids]
        rotations = self._rotations[batch.positions]
        last = len(self._weights.layers) - 1
        # silu becomes 0 where exp overflows; softmax checks its sums and computes them again. Both are described there.
        with np.errstate(over="ignore", invalid="ignore"):
            for index, layer in enumerate(self._weights.layers):
                outputs = batch.outputs if index == last else None
                hidden = self._attention(index, layer, batch, hidden, rotations, outputs)
                if len(hidden):
                    self._feed_forward(layer.feed_forward, hidden)
        batch.advance()
        return hidden

    def _attention(
        self,
        index: int,
        layer: Layer,
        batch: DecodeBatch | PrefillBatch,
        hidden: Array,
        rotations: npt.NDArray[np.complex64],
        outputs: Ints | None,
    ) -> Array:
        """The residual stream after attention.

        :param outputs: The rows to compute; the other rows only provide keys and values. None: all.
        """
        rope, latent = self.config.rope_dim, self.config.rope_dim + self.config.kv_lora_rank
        projected = _normalise(hidden, self.config.norm_eps) @ layer.inputs
        _rotate(projected[:, None, :], rotations, rope)
        values = projected[:, rope:latent]
        _normalise(values, INNER_NORM_EPS, out=values)
        projected[:, latent] = 1
        batch.store(index, projected[:, : latent + 1])
        if outputs is not None:
            hidden, projected, rotations = hidden[outputs], projected[outputs], rotations[outputs]
            if not len(outputs):
                return hidden
        query = _normalise(projected[:, latent + 2 :], INNER_NORM_EPS) @ layer.query
        query = query.reshape(len(hidden), self.config.heads, latent)
        _rotate(query, rotations, rope)
        attended = batch.attend(index, query)
        hidden += attended.reshape(len(hidden), -1) @ layer.output
        return hidden

    def _feed_forward(self, weights: FeedForward, hidden: Array) -> None:
        """Add the output of the layer's MLP or experts to the residual stream."""
        inputs = _normalise(hidden, self.config.norm_eps)
        if weights.shared is None:
            hidden += _gate(inputs @ weights.up, len(weights.down)) @ weights.down
        elif len(hidden) < SPARSE_FROM:
            hidden += self._all_experts(weights, inputs)
        else:
            hidden += self._chosen_experts(weights, inputs)

    def _all_experts(self, weights: FeedForward, inputs: Array) -> Array:
        """All experts as one wide MLP: weight 0 if not chosen, 1 for the shared one."""
        width, experts = len(weights.down), self.config.experts
        projected = inputs @ weights.up
        chosen, shares = route(projected[:, 2 * width :], _bias(weights), self.config)
        scale = np.zeros((len(inputs), experts + 1), np.float32)
        scale[np.arange(len(inputs))[:, None], chosen] = shares
        scale[:, experts] = 1
        activated = _gate(projected, width)
        by_expert = activated.reshape(len(inputs), experts + 1, -1)
        by_expert *= scale[:, :, None]
        return activated @ weights.down

    def _chosen_experts(self, weights: FeedForward, inputs: Array) -> Array:
        """Only the chosen experts: tokens sorted by expert, one product per expert."""
        assert weights.shared is not None
        up, down = weights.shared
        projected = inputs @ up
        chosen, shares = route(projected[:, 2 * len(down) :], _bias(weights), self.config)
        result: Array = _gate(projected, len(down)) @ down

        per_token = chosen.shape[1]
        order = np.argsort(chosen.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(chosen.ravel(), minlength=self.config.experts)).tolist()
        gathered = inputs[order // per_token]
        width = len(weights.experts[0][1])
        wide = np.empty((len(gathered), 2 * width), np.float32)
        for (up, _), start, end in zip(weights.experts, [0, *ends], ends, strict=False):
            np.matmul(gathered[start:end], up, out=wide[start:end])
        activated = _gate(wide, width)
        activated *= shares.ravel()[order, None]
        for (_, down), start, end in zip(weights.experts, [0, *ends], ends, strict=False):
            np.matmul(activated[start:end], down, out=gathered[start:end])
        unsorted = np.empty_like(gathered)
        unsorted[order] = gathered
        for choice in range(per_token):
            result += unsorted[choice::per_token]
        return result

    def _logits(self, hidden: Array) -> Array:
        return _normalise(hidden, self.config.norm_eps) @ self._weights.head


def route(logits: Array, selection_bias: Array, config: ModelConfig) -> tuple[Ints, Array]:
    """Choose the experts of each token, and their weights.

    DeepSeek-V3, arXiv 2412.19437, 2.1.2. The bias affects the choice only. The choice is limited to the groups with the
    highest sums of their two best scores.

    :param logits: shape (tokens, experts)
    :return: Experts and their weights, in no particular order. shapes (tokens, experts_per_token)
    """
    scores = affinity(logits)
    candidates = scores + selection_bias
    rows = np.arange(len(logits))[:, None]
    if config.groups_per_token < config.groups:
        grouped = candidates.reshape(len(logits), config.groups, -1)
        best_two = np.partition(grouped, -2, axis=2)[..., -2:].sum(axis=2)
        left_out = np.argpartition(best_two, -config.groups_per_token, axis=1)[:, : -config.groups_per_token]
        grouped[rows, left_out] = -np.inf
    chosen = np.argpartition(candidates, -config.experts_per_token, axis=1)[:, -config.experts_per_token :]
    shares = scores[rows, chosen]
    if config.normalise_top_k:
        shares /= shares.sum(axis=1, keepdims=True)
    shares *= np.float32(config.routed_scaling)
    return chosen, shares


def affinity(logits: Array) -> Array:
    """The experts' scores: the logistic function of the logits, in the same shape."""
    scores = np.exp(-logits)
    scores += 1
    return np.reciprocal(scores, out=scores)


def log_softmax(logits: Array) -> Array:
    """Log-probabilities over the last axis; overwrites `logits`."""
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits


def _normalise(rows: Array, eps: float, out: Array | None = None) -> Array:
    """RMSNorm without its weight and the root of the width, which `weights` folds."""
    squares = np.vecdot(rows, rows)
    squares += np.float32(rows.shape[1] * eps)
    np.sqrt(squares, out=squares)
    result: Array = np.divide(rows, squares[:, None], out=out)
    return result


def _rotate(rows: Array, rotations: npt.NDArray[np.complex64], rope_dim: int) -> None:
    """Apply RoPE in place to the first `rope_dim` columns.

    DeepSeek interleaves the pairs, so each pair in memory is a complex number.

    :param rows: shape (tokens, heads, even width)
    """
    pairs = rows.view(np.complex64)[..., : rope_dim // 2]
    pairs *= rotations[:, None, :]


def _gate(projected: Array, width: int) -> Array:
    """Compute silu(gate) * up in place of the gates, from [-gate | -up | …].

    With g and u negated this is g u / (1 + exp g). If exp overflows, silu is 0, and so is the quotient.
    """
    gates = projected[:, :width]
    denominators = np.exp(gates)
    denominators += 1
    gates *= projected[:, width : 2 * width]
    gates /= denominators
    return gates


def _bias(weights: FeedForward) -> Array:
    assert weights.selection_bias is not None
    return weights.selection_bias
