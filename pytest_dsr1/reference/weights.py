"""Reads a checkpoint and folds its matrices for the forward pass.

The checkpoint is a Hugging Face folder; its weights are converted to float32. Folding makes a step consist of few large
matrix products. It is computed in float64 and exact up to rounding:

- RMSNorm's weight and the root of its width are multiplied into the next matrix; the norm is then
  ``x / sqrt(x.x + n eps)``.
- The key half of `kv_b_proj` and the softmax scale are multiplied into `q_b_proj`, the value half into `o_proj`. This
  is the *absorbed* form of multi-head latent attention, which attends to latents and never computes keys or values
  (DeepSeek-V2, arXiv 2405.04434, 2.1.2).
- Projections of the same input are concatenated. Gate and up are negated, which saves one pass of silu (see
  `model._gate`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

Array = npt.NDArray[np.float32]
#: Epsilon of DeepSeek's two inner norms. It is not in the configuration; transformers and the original code use this.
INNER_NORM_EPS = 1e-6


class CheckpointError(ValueError):
    """The folder has no model that the engine supports; names the file and the reason."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The part of `config.json` that the forward pass depends on."""

    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    q_lora_rank: int
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    first_dense_layers: int
    experts: int
    experts_per_token: int
    groups: int
    groups_per_token: int
    normalise_top_k: bool
    routed_scaling: float
    norm_eps: float
    rope_theta: float
    context_length: int
    eos_token_ids: frozenset[int]

    @property
    def attention_scale(self) -> float:
        """1 / sqrt(query-key width), RoPE included; without YaRN there is no other factor."""
        return float((self.nope_dim + self.rope_dim) ** -0.5)

    @classmethod
    def load(cls, folder: Path) -> ModelConfig:
        """Read `folder`/config.json.

        :raises CheckpointError: if it cannot be read, or the engine does not support the architecture.
        """
        path = folder / "config.json"
        try:
            raw: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: no readable model configuration ({error})") from error
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        supported = {
            "model_type": (raw.get("model_type"), "deepseek_v3"),
            "hidden_act": (raw.get("hidden_act", "silu"), "silu"),
            # YaRN with factor 1 changes nothing; some servers require the entry.
            "rope_type": ("default" if rope.get("factor") == 1 else rope.get("rope_type", "default"), "default"),
            "rope_interleave": (raw.get("rope_interleave", True), True),
            "attention_bias": (raw.get("attention_bias", False), False),
        }
        for name, (found, wanted) in supported.items():
            if found != wanted:
                raise CheckpointError(f"{path}: {name} is {found!r}; this engine supports only {wanted!r}")
        for name in ("q_lora_rank", "kv_lora_rank"):
            if not isinstance(raw.get(name), int) or raw[name] % 2:
                raise CheckpointError(f"{path}: {name} is {raw.get(name)!r}; this engine needs an even number")
        eos = raw.get("eos_token_id")
        try:
            return cls(
                vocab_size=raw["vocab_size"],
                hidden_size=raw["hidden_size"],
                layers=raw["num_hidden_layers"],
                heads=raw["num_attention_heads"],
                q_lora_rank=raw["q_lora_rank"],
                kv_lora_rank=raw["kv_lora_rank"],
                nope_dim=raw["qk_nope_head_dim"],
                rope_dim=raw["qk_rope_head_dim"],
                v_dim=raw["v_head_dim"],
                first_dense_layers=raw["first_k_dense_replace"],
                experts=raw["n_routed_experts"],
                experts_per_token=raw["num_experts_per_tok"],
                groups=raw["n_group"],
                groups_per_token=raw["topk_group"],
                normalise_top_k=raw["norm_topk_prob"],
                routed_scaling=float(raw["routed_scaling_factor"]),
                norm_eps=raw["rms_norm_eps"],
                rope_theta=float(rope["rope_theta"] if "rope_theta" in rope else raw["rope_theta"]),
                context_length=raw["max_position_embeddings"],
                eos_token_ids=frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos]),
            )
        except KeyError as error:
            raise CheckpointError(f"{path}: has no {error}") from error


@dataclass(frozen=True, kw_only=True)
class FeedForward:
    """The part of a layer after attention: a gated MLP, or routed and shared experts.

    :param up: [gates | ups | router] of all experts, the shared one last. shape (hidden, 2 width + routed)
    :param down: shape (width, hidden)
    :param experts: (up, down) of each routed expert, to compute only the chosen ones; empty for a plain MLP.
    :param shared: (up with the router's columns, down) of the shared expert; None for a plain MLP.
    :param selection_bias: Added to the scores when experts are chosen, but not in their weights. shape (routed,)
    """

    up: Array
    down: Array
    experts: tuple[tuple[Array, Array], ...] = ()
    shared: tuple[Array, Array] | None = None
    selection_bias: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder layer.

    :param inputs: To [rope key | latent | 2 spare | query latent]. shape (hidden, rope + kv_lora + 2 + q_lora)
    :param query: To each head's [rope query | latent query], scaled. shape (q_lora, heads * (rope + kv_lora))
    :param output: From every head's attended latent. shape (heads * kv_lora, hidden)
    """

    inputs: Array
    query: Array
    output: Array
    feed_forward: FeedForward


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The whole model.

    :param embedding: shape (vocab, hidden)
    :param layers: In order.
    :param head: The output matrix, with the final norm's weight. shape (hidden, vocab)
    """

    embedding: Array
    layers: tuple[Layer, ...]
    head: Array

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Weights:
        """Read `folder`/model.safetensors (BF16 or F32) and fold it.

        :raises CheckpointError: if the file or a tensor is missing, or a tensor has another shape.
        """
        return _Folder(read_tensors(folder / "model.safetensors"), config).weights()


def read_tensors(path: Path) -> dict[str, Array]:
    """Read every tensor of a safetensors file as float32; BF16 converts exactly.

    :raises CheckpointError: if the file cannot be read, or has a tensor of another type.
    """
    try:
        entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]  # a compiled function
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: no readable weights ({error})") from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(entry["data"], np.uint16).astype(np.uint32) << 16
            flat = bits.view(np.float32)
        elif entry["dtype"] == "F32":
            flat = np.frombuffer(entry["data"], np.float32)
        else:
            raise CheckpointError(f"{path}: {name} is {entry['dtype']}; expected BF16 or F32")
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


class _Folder:
    """Folds a checkpoint's tensors (HF names, linear weights as (out, in))."""

    def __init__(self, tensors: Mapping[str, Array], config: ModelConfig) -> None:
        self._tensors = tensors
        self._config = config

    def weights(self) -> Weights:
        config = self._config
        return Weights(
            embedding=_float32(self._get("model.embed_tokens", config.vocab_size, config.hidden_size)),
            layers=tuple(self._layer(index) for index in range(config.layers)),
            head=_float32(self._norm("model.norm")[:, None] * self._linear("lm_head", config.vocab_size)),
        )

    def _get(self, name: str, *shape: int) -> npt.NDArray[np.float64]:
        try:
            tensor = self._tensors[name + ".weight"]
        except KeyError as error:
            raise CheckpointError(f"the checkpoint has no {name}.weight") from error
        if tensor.shape != shape:
            raise CheckpointError(f"{name}.weight has shape {tensor.shape}; the configuration requires {shape}")
        return tensor.astype(np.float64)

    def _linear(self, name: str, outputs: int, inputs: int = 0) -> npt.NDArray[np.float64]:
        """The matrix to multiply with from the right. shape (inputs, outputs)"""
        return self._get(name, outputs, inputs or self._config.hidden_size).T

    def _norm(self, name: str, width: int = 0) -> npt.NDArray[np.float64]:
        width = width or self._config.hidden_size
        return self._get(name, width) * math.sqrt(width)

    def _layer(self, index: int) -> Layer:
        config, prefix = self._config, f"model.layers.{index}."
        attention = prefix + "self_attn."
        heads, latent, rope = config.heads, config.kv_lora_rank, config.rope_dim

        # kv_a gives [latent | rope key]; the rope key is moved to the front, where its pairs begin at even columns.
        kv_a = np.roll(self._linear(attention + "kv_a_proj_with_mqa", latent + rope), rope, axis=1)
        spare = np.zeros((config.hidden_size, 2))
        inputs = np.hstack([kv_a, spare, self._linear(attention + "q_a_proj", config.q_lora_rank)])

        latent_norm = self._norm(attention + "kv_a_layernorm", latent)
        kv_b = self._linear(attention + "kv_b_proj", heads * (config.nope_dim + config.v_dim), latent)
        kv_b = latent_norm[:, None, None] * kv_b.reshape(latent, heads, config.nope_dim + config.v_dim)
        up_k, up_v = kv_b[:, :, : config.nope_dim], kv_b[:, :, config.nope_dim :]
        q_b = self._linear(attention + "q_b_proj", heads * (config.nope_dim + rope), config.q_lora_rank)
        q_b = self._norm(attention + "q_a_layernorm", config.q_lora_rank)[:, None] * q_b * config.attention_scale
        q_b = q_b.reshape(config.q_lora_rank, heads, config.nope_dim + rope)
        absorbed = np.einsum("qhn,lhn->qhl", q_b[:, :, : config.nope_dim], up_k)
        query = np.concatenate([q_b[:, :, config.nope_dim :], absorbed], axis=2)

        o_proj = self._linear(attention + "o_proj", config.hidden_size, heads * config.v_dim)
        o_proj = o_proj.reshape(heads, config.v_dim, config.hidden_size)
        output = np.einsum("lhv,hvd->hld", up_v, o_proj)
        return Layer(
            inputs=_float32(self._norm(prefix + "input_layernorm")[:, None] * inputs),
            query=_float32(query.reshape(config.q_lora_rank, -1)),
            output=_float32(output.reshape(-1, config.hidden_size)),
            feed_forward=self._feed_forward(index, prefix),
        )

    def _feed_forward(self, index: int, prefix: str) -> FeedForward:
        config = self._config
        norm = self._norm(prefix + "post_attention_layernorm")[:, None]
        if index < config.first_dense_layers:
            gate, up, down = self._mlp(prefix + "mlp.", norm)
            return FeedForward(up=_float32(np.hstack([gate, up])), down=_float32(down))
        routed = [self._mlp(f"{prefix}mlp.experts.{expert}.", norm) for expert in range(config.experts)]
        shared = self._mlp(prefix + "mlp.shared_experts.", norm)
        router = norm * self._linear(prefix + "mlp.gate", config.experts)
        gates, ups, downs = zip(*routed, shared, strict=True)
        bias_name = prefix + "mlp.gate.e_score_correction_bias"
        if bias_name not in self._tensors:
            raise CheckpointError(f"the checkpoint has no {bias_name}")
        return FeedForward(
            up=_float32(np.hstack([*gates, *ups, router])),
            down=_float32(np.vstack(downs)),
            experts=tuple((_float32(np.hstack([gate, up])), _float32(down)) for gate, up, down in routed),
            shared=(_float32(np.hstack([shared[0], shared[1], router])), _float32(shared[2])),
            selection_bias=self._tensors[bias_name],
        )

    def _mlp(self, prefix: str, norm: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], ...]:
        """(gate, up, down) of a gated MLP; gate and up with the norm, and negated.

        The width is taken from the checkpoint.
        """
        name = prefix + "gate_proj.weight"
        if name not in self._tensors:
            raise CheckpointError(f"the checkpoint has no {name}")
        width = self._tensors[name].shape[0]
        gate, up = (-norm * self._linear(f"{prefix}{part}_proj", width) for part in ("gate", "up"))
        return gate, up, self._linear(prefix + "down_proj", self._config.hidden_size, width)


def _float32(array: npt.NDArray[np.float64]) -> Array:
    return np.ascontiguousarray(array, np.float32)
