"""A tiny DeepSeek-V3 with random weights, and a plain float64 forward pass.

The forward pass follows the papers and shares nothing with the engine's. It computes keys and values of every head,
sends tokens through their experts one by one, and subtracts the maximum in softmax. The engine must agree with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

Floats = npt.NDArray[np.float64]

SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>")


@dataclass(frozen=True)
class Tiny:
    """A checkpoint: HF's configuration, and its tensors by HF's names."""

    config: dict[str, Any]
    tensors: dict[str, npt.NDArray[np.float32]]

    def save(self, folder: Path) -> Path:
        """Write a Hugging Face folder, with a byte-level tokenizer of its vocabulary."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(self.tensors, folder / "model.safetensors")
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: id_ for id_, token in enumerate([*SPECIAL, *alphabet])}
        tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.add_special_tokens(list(SPECIAL))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    def with_config(self, **changes: Any) -> Tiny:
        return replace(self, config=self.config | changes)

    def scaled(self, part: str, factor: float) -> Tiny:
        """Every tensor whose name contains `part`, times `factor`."""
        tensors = {name: t * np.float32(factor) if part in name else t for name, t in self.tensors.items()}
        return replace(self, tensors=tensors)


def make(seed: int = 0, *, vocab: int = 260, layers: int = 3, context: int = 16384) -> Tiny:
    """Random weights of every part: groups, a dense layer, norms other than 1, a bias."""
    config = {
        "model_type": "deepseek_v3",
        "hidden_act": "silu",
        "vocab_size": vocab,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "intermediate_size": 48,
        "moe_intermediate_size": 20,
        "first_k_dense_replace": 1,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_group": 3,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": context,
        "eos_token_id": 2,
    }
    random = np.random.default_rng(seed)
    hidden, heads, latent, rope, nope, v, q = 32, 4, 16, 4, 8, 6, 24
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (vocab, hidden), "lm_head": (vocab, hidden)}
    shapes["model.norm"] = (hidden,)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm": (hidden,),
            prefix + "post_attention_layernorm": (hidden,),
            prefix + "self_attn.q_a_proj": (q, hidden),
            prefix + "self_attn.q_a_layernorm": (q,),
            prefix + "self_attn.q_b_proj": (heads * (nope + rope), q),
            prefix + "self_attn.kv_a_proj_with_mqa": (latent + rope, hidden),
            prefix + "self_attn.kv_a_layernorm": (latent,),
            prefix + "self_attn.kv_b_proj": (heads * (nope + v), latent),
            prefix + "self_attn.o_proj": (hidden, heads * v),
        }
        experts = [f"experts.{expert}." for expert in range(6)] + ["shared_experts."] if layer else [""]
        for expert in experts:
            width = 20 if layer else 48
            shapes |= {f"{prefix}mlp.{expert}{part}_proj": (width, hidden) for part in ("gate", "up")}
            shapes[f"{prefix}mlp.{expert}down_proj"] = (hidden, width)
        if layer:
            shapes[prefix + "mlp.gate"] = (6, hidden)
    tensors = {
        name + ".weight": (
            1 + 0.2 * random.standard_normal(shape) if len(shape) == 1 else 0.25 * random.standard_normal(shape)
        ).astype(np.float32)
        for name, shape in shapes.items()
    }
    for layer in range(1, layers):
        name = f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
        tensors[name] = (0.1 * random.standard_normal(6)).astype(np.float32)
    return Tiny(config, tensors)


def plain_logprobs(tiny: Tiny, ids: list[int]) -> Floats:
    """Log-probabilities after each prefix. shape (tokens, vocab)"""
    config = tiny.config

    def weight(name: str) -> Floats:
        return tiny.tensors[name + ".weight"].astype(np.float64)

    def norm(x: Floats, name: str) -> Floats:
        root: Floats = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x / root * weight(name)

    def mlp(x: Floats, prefix: str) -> Floats:
        gate, up = x @ weight(prefix + "gate_proj").T, x @ weight(prefix + "up_proj").T
        out: Floats = (gate / (1 + np.exp(-gate)) * up) @ weight(prefix + "down_proj").T
        return out

    def rotate(x: Floats, position: int) -> Floats:
        turned = x.copy()
        for pair in range(len(x) // 2):
            angle = position * config["rope_theta"] ** (-2 * pair / len(x))
            a, b = x[2 * pair], x[2 * pair + 1]
            turned[2 * pair] = a * np.cos(angle) - b * np.sin(angle)
            turned[2 * pair + 1] = a * np.sin(angle) + b * np.cos(angle)
        return turned

    def attention(x: Floats, prefix: str) -> Floats:
        heads, nope, rope = config["num_attention_heads"], config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        latent = config["kv_lora_rank"]
        q = norm(x @ weight(prefix + "q_a_proj").T, prefix + "q_a_layernorm") @ weight(prefix + "q_b_proj").T
        kv_a = x @ weight(prefix + "kv_a_proj_with_mqa").T
        kv = norm(kv_a[:, :latent], prefix + "kv_a_layernorm") @ weight(prefix + "kv_b_proj").T
        q, kv = q.reshape(len(x), heads, -1), kv.reshape(len(x), heads, -1)
        shared_key = [rotate(kv_a[t, latent:], t) for t in range(len(x))]
        out = np.zeros((len(x), heads, config["v_head_dim"]))
        for t in range(len(x)):
            for head in range(heads):
                query = np.concatenate([q[t, head, :nope], rotate(q[t, head, nope:], t)])
                keys = np.array([np.concatenate([kv[s, head, :nope], shared_key[s]]) for s in range(t + 1)])
                scores = keys @ query / np.sqrt(nope + rope)
                shares = np.exp(scores - scores.max())
                out[t, head] = shares @ kv[: t + 1, head, nope:] / shares.sum()
        return out.reshape(len(x), -1) @ weight(prefix + "o_proj").T

    def experts(x: Floats, prefix: str) -> Floats:
        out = mlp(x, prefix + "shared_experts.")
        bias = tiny.tensors[prefix + "gate.e_score_correction_bias"].astype(np.float64)
        for t, row in enumerate(x):
            scores = 1 / (1 + np.exp(-(weight(prefix + "gate") @ row)))
            for expert, share in plain_route(scores, bias, config):
                out[t] += share * mlp(row, f"{prefix}experts.{expert}.")
        return out

    x = weight("model.embed_tokens")[ids]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        x = x + attention(norm(x, prefix + "input_layernorm"), prefix + "self_attn.")
        inner = norm(x, prefix + "post_attention_layernorm")
        dense = layer < config["first_k_dense_replace"]
        x = x + (mlp(inner, prefix + "mlp.") if dense else experts(inner, prefix + "mlp."))
    logits = norm(x, "model.norm") @ weight("lm_head").T
    top = logits.max(-1, keepdims=True)
    result: Floats = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return result


def plain_route(scores: npt.ArrayLike, bias: npt.ArrayLike, config: dict[str, Any]) -> list[tuple[int, float]]:
    """One token's experts and shares: first groups, then experts, by biased score."""
    scores = np.asarray(scores, np.float64)
    biased = scores + np.asarray(bias, np.float64)
    size = len(scores) // config["n_group"]
    groups = sorted(range(config["n_group"]), key=lambda g: -sum(sorted(biased[g * size : (g + 1) * size])[-2:]))
    allowed = [e for g in groups[: config["topk_group"]] for e in range(g * size, (g + 1) * size)]
    chosen = sorted(allowed, key=lambda e: -biased[e])[: config["num_experts_per_tok"]]
    total = sum(scores[e] for e in chosen) if config["norm_topk_prob"] else 1.0
    return [(e, float(scores[e] / total * config["routed_scaling_factor"])) for e in chosen]
