"""The embedded model as a function of its weights, in PyTorch, for training.

The weights are one dictionary under the names of Hugging Face's `deepseek_v3`, except that the routed experts of a
layer are stacked (`….experts.gate_proj`, shape (experts, wide, hidden)) until they are stored. Every expert is computed
for every token, with weight 0 where it was not chosen: eight small experts beside the shared one are one wide MLP.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812  # the name under which everyone knows it
from safetensors.torch import load_file, save_file

Tensor: TypeAlias = torch.Tensor
Weights: TypeAlias = dict[str, Tensor]
Config: TypeAlias = dict[str, Any]

CONTEXT: Final = 16384
CONFIG: Final[Config] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "dtype": "bfloat16",
    "vocab_size": 1024,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "intermediate_size": 384,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 64,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "rope_interleave": True,
    # YaRN by a factor of 1 is plain RoPE; SGLang's path for this architecture asks for the entry
    "rope_scaling": {
        "type": "yarn",
        "rope_type": "yarn",
        "factor": 1.0,
        "original_max_position_embeddings": CONTEXT,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "tie_word_embeddings": False,
    "use_cache": True,
    "ep_size": 1,
    "num_nextn_predict_layers": 0,
    "pretraining_tp": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def is_dense(layer: int, config: Config) -> bool:
    """Whether a layer has a plain MLP in the place of experts."""
    return layer < int(config["first_k_dense_replace"])


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights, experts stacked."""
    hidden, heads, experts = config["hidden_size"], config["num_attention_heads"], config["n_routed_experts"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q_rank, kv_rank, wide = config["q_lora_rank"], config["kv_lora_rank"], config["moe_intermediate_size"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}

    def mlp(name: str, inner: int) -> None:
        found[f"{name}.gate_proj.weight"] = found[f"{name}.up_proj.weight"] = (inner, hidden)
        found[f"{name}.down_proj.weight"] = (hidden, inner)

    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        found[f"{at}.input_layernorm.weight"] = found[f"{at}.post_attention_layernorm.weight"] = (hidden,)
        found[f"{at}.self_attn.q_a_proj.weight"] = (q_rank, hidden)
        found[f"{at}.self_attn.q_a_layernorm.weight"] = (q_rank,)
        found[f"{at}.self_attn.q_b_proj.weight"] = (heads * (nope + rope), q_rank)
        found[f"{at}.self_attn.kv_a_proj_with_mqa.weight"] = (kv_rank + rope, hidden)
        found[f"{at}.self_attn.kv_a_layernorm.weight"] = (kv_rank,)
        found[f"{at}.self_attn.kv_b_proj.weight"] = (heads * (nope + value), kv_rank)
        found[f"{at}.self_attn.o_proj.weight"] = (hidden, heads * value)
        if is_dense(layer, config):
            mlp(f"{at}.mlp", config["intermediate_size"])
            continue
        found[f"{at}.mlp.gate.weight"] = (experts, hidden)
        found[f"{at}.mlp.gate.e_score_correction_bias"] = (experts,)
        found[f"{at}.mlp.experts.gate_proj"] = found[f"{at}.mlp.experts.up_proj"] = (experts, wide, hidden)
        found[f"{at}.mlp.experts.down_proj"] = (experts, hidden, wide)
        mlp(f"{at}.mlp.shared_experts", config["n_shared_experts"] * wide)
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (config["vocab_size"], hidden)}


def initial(config: Config, device: str, seed: int = 0) -> Weights:
    """Random weights: norms 1, correction biases 0, matrices of variance 1 / inputs."""
    source = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for name, shape in shapes(config).items():
        if "norm" in name:
            weights[name] = torch.ones(shape)
        elif name.endswith("correction_bias"):
            weights[name] = torch.zeros(shape)
        else:
            # what is added to the residual stream starts small, so that depth does not inflate it
            scale = 0.3 if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")) else 1.0
            weights[name] = torch.randn(shape, generator=source) * (scale / math.sqrt(shape[-1]))
    return {name: weight.to(device) for name, weight in weights.items()}


def rotations(length: int, config: Config, device: str) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, shape (length, rope / 2) each."""
    pairs = config["qk_rope_head_dim"] // 2
    rates = 1.0 / config["rope_theta"] ** (torch.arange(pairs, device=device) / pairs)
    # in float32 throughout, as transformers has them: thousands of tokens on, the rounding of an angle counts
    angles = torch.outer(torch.arange(length, device=device).float(), rates)
    return angles.cos(), angles.sin()


def _norm(x: Tensor, weight: Tensor, config: Config) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]) * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns neighbouring pairs of the last axis. x: (rows, heads, length, rope)."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


def _attention(x: Tensor, weights: Weights, at: str, cos: Tensor, sin: Tensor, config: Config) -> Tensor:
    rows, length, _ = x.shape
    heads, nope, rope = config["num_attention_heads"], config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    value, kv_rank = config["v_head_dim"], config["kv_lora_rank"]
    latent_q = _norm(F.linear(x, weights[f"{at}.q_a_proj.weight"]), weights[f"{at}.q_a_layernorm.weight"], config)
    q = F.linear(latent_q, weights[f"{at}.q_b_proj.weight"]).view(rows, length, heads, nope + rope).transpose(1, 2)
    latent, k_rope = F.linear(x, weights[f"{at}.kv_a_proj_with_mqa.weight"]).split((kv_rank, rope), -1)
    kv = F.linear(_norm(latent, weights[f"{at}.kv_a_layernorm.weight"], config), weights[f"{at}.kv_b_proj.weight"])
    k_nope, v = kv.view(rows, length, heads, nope + value).transpose(1, 2).split((nope, value), -1)
    q = torch.cat((q[..., :nope], _rotate(q[..., nope:], cos, sin)), -1)
    k_rope = _rotate(k_rope[:, None], cos, sin).expand(rows, heads, length, rope)
    k = torch.cat((k_nope, k_rope), -1)
    # the fast kernels want values as wide as queries
    padded = F.pad(v, (0, nope + rope - value))
    out = F.scaled_dot_product_attention(q, k, padded, is_causal=True)[..., :value]
    return F.linear(out.transpose(1, 2).reshape(rows, length, heads * value), weights[f"{at}.o_proj.weight"])


def _choose(x: Tensor, weights: Weights, at: str, config: Config) -> Tensor:
    """Weight of every expert for every token, 0 if not chosen. shape (tokens, experts)"""
    experts, groups = config["n_routed_experts"], config["n_group"]
    with torch.autocast(x.device.type, enabled=False):
        scores = F.linear(x.float(), weights[f"{at}.gate.weight"].float()).sigmoid()
    ranked = scores.detach() + weights[f"{at}.gate.e_score_correction_bias"]
    strength = ranked.view(-1, groups, experts // groups).topk(2, -1).values.sum(-1)
    kept = torch.zeros_like(strength).scatter(-1, strength.topk(config["topk_group"], -1).indices, 1.0)
    ranked = ranked.masked_fill(kept.repeat_interleave(experts // groups, -1) == 0, -math.inf)
    best = ranked.topk(config["num_experts_per_tok"], -1).indices
    chosen = scores * torch.zeros_like(scores).scatter(-1, best, 1.0)
    return chosen / (chosen.sum(-1, keepdim=True) + 1e-20) * config["routed_scaling_factor"]


def _experts(x: Tensor, weights: Weights, at: str, config: Config) -> tuple[Tensor, Tensor]:
    """The experts' output for x, shape (tokens, hidden), and tokens per routed expert."""
    share = _choose(x, weights, at, config)
    routed, shared = f"{at}.experts", f"{at}.shared_experts"
    gate = torch.cat((weights[f"{routed}.gate_proj"].flatten(0, 1), weights[f"{shared}.gate_proj.weight"]))
    up = torch.cat((weights[f"{routed}.up_proj"].flatten(0, 1), weights[f"{shared}.up_proj.weight"]))
    down = torch.cat((*weights[f"{routed}.down_proj"].unbind(), weights[f"{shared}.down_proj.weight"]), 1)
    inner = F.silu(F.linear(x, gate)) * F.linear(x, up)
    scale = F.pad(share, (0, config["n_shared_experts"]), value=1.0)
    inner = inner * scale.repeat_interleave(config["moe_intermediate_size"], -1).to(inner.dtype)
    return F.linear(inner, down), (share.detach() > 0).float().sum(0)


def forward(weights: Weights, ids: Tensor, turns: tuple[Tensor, Tensor], config: Config) -> tuple[Tensor, Tensor]:
    """Next-token logits and the experts' loads.

    :param ids: Shape (rows, length).
    :param turns: `rotations` of at least that length.
    :returns: (rows, length, vocabulary), and (layers with experts, experts): tokens that chose each expert.
    """
    cos, sin = turns[0][: ids.shape[1]], turns[1][: ids.shape[1]]
    x = weights["model.embed_tokens.weight"][ids].float()
    loads = []
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        y = _norm(x, weights[f"{at}.input_layernorm.weight"], config)
        x = x + _attention(y, weights, f"{at}.self_attn", cos, sin, config)
        y = _norm(x, weights[f"{at}.post_attention_layernorm.weight"], config)
        if is_dense(layer, config):
            gate, up = (F.linear(y, weights[f"{at}.mlp.{side}_proj.weight"]) for side in ("gate", "up"))
            x = x + F.linear(F.silu(gate) * up, weights[f"{at}.mlp.down_proj.weight"])
        else:
            out, load = _experts(y.flatten(0, 1), weights, f"{at}.mlp", config)
            x = x + out.view_as(x)
            loads.append(load)
    return F.linear(_norm(x, weights["model.norm.weight"], config), weights["lm_head.weight"]), torch.stack(loads)


def store(weights: Weights, folder: Path, config: Config) -> None:
    """Writes config.json, generation_config.json and model.safetensors in bfloat16.

    Each expert has tensors of its own.
    """
    flat: Weights = {}
    for name, weight in weights.items():
        if ".experts." in name:
            at, side = name.rsplit(".", 1)
            flat |= {f"{at}.{expert}.{side}.weight": part for expert, part in enumerate(weight)}
        else:
            flat[name] = weight
    plain = {name: flat[name].detach().to("cpu", torch.bfloat16).contiguous().clone() for name in sorted(flat)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {name: config[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(special, indent=2) + "\n")


def stored(folder: Path, config: Config) -> Weights:
    """Reads what `store` wrote, widened to float32."""
    flat = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
    weights: Weights = {}
    for name in shapes(config):
        if ".experts." in name:
            at, side = name.rsplit(".", 1)
            parts = [flat[f"{at}.{expert}.{side}.weight"] for expert in range(config["n_routed_experts"])]
            weights[name] = torch.stack(parts)
        else:
            weights[name] = flat[name]
    return weights
