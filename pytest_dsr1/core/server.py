"""What a server says of itself, and what follows from it: which engine it is, how many GPUs it uses."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

#: How the embedded engine names itself in /server_info.
REFERENCE_ENGINE = "pytest-dsr1-reference"
#: Kept with a result where the server tells; everything else may hold secrets.
_KEPT = (
    "version",
    "model_path",
    "tokenizer_path",
    "served_model_name",
    "tp_size",
    "pp_size",
    "dp_size",
    "ep_size",
    "enable_dp_attention",
    "quantization",
    "dtype",
    "kv_cache_dtype",
    "context_length",
    "attention_backend",
    "moe_runner_backend",
    "disable_radix_cache",
    "chunked_prefill_size",
    "max_prefill_tokens",
    "max_running_requests",
    "mem_fraction_static",
    "cuda_graph_max_bs",
    "num_continuous_decode_steps",
    "stream_interval",
    "speculative_algorithm",
    "speculative_num_steps",
    "speculative_eagle_topk",
    "speculative_num_draft_tokens",
    "random_seed",
    "vocab_size",
    "max_model_len",
)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server that answers, and the model it serves.

    :param url: Base URL, without `/v1`.
    :param engine: `reference`, `sglang` (launched by us) or `external`; kept with every result.
    :param info: What /server_info, /model_info and /v1/models say, in one mapping.
    :param num_gpus: tp x pp x dp; None if nobody says.
    :param num_gpus_source: `server`, `assumed` (from --tp) or `unknown`.
    :param process: Process id and start (epoch seconds) of whoever listens there, where this machine can see it.
    :param launch: How it was started, where we did that: `recipe`, `command`, `environment`, `log`, `start_s`.
    :param concurrent_servers: Servers that are measured at the same time, this one included.
    """

    url: str
    model: str
    engine: str
    info: Mapping[str, Any] = field(default_factory=dict)
    num_gpus: int | None = None
    num_gpus_source: str = "unknown"
    process: Mapping[str, Any] | None = None
    launch: Mapping[str, Any] | None = None
    concurrent_servers: int = 1

    @property
    def is_reference(self) -> bool:
        return self.engine == "reference"

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and output together; None where the server does not say."""
        for key in ("max_model_len", "context_length", "max_context_length"):
            value = self.info.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    def to_fields(self) -> dict[str, Any]:
        """The `server` object of a result; no secrets, since only named fields are kept."""
        fields: dict[str, Any] = {
            "url": self.url,
            "engine": self.engine,
            "model": self.model,
            "num_gpus": self.num_gpus,
            "num_gpus_source": self.num_gpus_source,
            "info": self.kept_info,
            "concurrent_servers": self.concurrent_servers,
        }
        if self.process is not None:
            fields["process"] = dict(self.process)
        if self.launch is not None:
            fields["launch"] = dict(self.launch)
        return fields

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model's files: tokenizer_path, model_path, the model's name.

        The first two as the server reports them; no name twice.
        """
        reported = (self.info.get(key) for key in ("tokenizer_path", "model_path"))
        return tuple(dict.fromkeys([*(name for name in reported if isinstance(name, str) and name), self.model]))

    @property
    def kept_info(self) -> dict[str, Any]:
        """What it says of itself, as far as it is kept: version and arguments."""
        return {key: self.info[key] for key in _KEPT if self.info.get(key) is not None}


def identity_changes(before: Served, after: Served) -> tuple[str, ...]:
    """What shows that another server answers, or the same one with other settings; empty if nothing does."""
    return changes_between(before.to_fields(), after.to_fields())


def changes_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """The same of two results' `server` objects.

    What only one of them has is no change: a server that did not answer once, or that says more from now on.
    """
    one, other = _identity(before), _identity(after)
    return tuple(
        f"{name}: {value} -> {other[name]}" for name, value in one.items() if name in other and value != other[name]
    )


def _identity(server: Mapping[str, Any]) -> dict[str, Any]:
    process = {f"process {name}": value for name, value in (server.get("process") or {}).items()}
    said = {name: server[name] for name in ("model", "num_gpus") if server.get(name) is not None}
    return {**said, **process, **(server.get("info") or {})}


def is_loopback(url: str) -> bool:
    """Whether `url` points to this machine, where no proxy may stand between."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def describe(url: str, model: str, info: Mapping[str, Any], tp: int | None = None) -> Served:
    """Make a `Served` of what a server said.

    :param tp: `--tp` as typed; counts, marked as assumed, only where the server says nothing.
    """
    if info.get("engine") == REFERENCE_ENGINE:
        return Served(url=url, model=model, engine="reference", info=info, num_gpus=1, num_gpus_source="server")
    num_gpus = count_gpus(info)
    source = "server" if num_gpus is not None else "assumed" if tp is not None else "unknown"
    return Served(
        url=url,
        model=model,
        engine="external",
        info=info,
        num_gpus=num_gpus if num_gpus is not None else tp,
        num_gpus_source=source,
    )


def count_gpus(info: Mapping[str, Any]) -> int | None:
    """tp x pp x dp as the server says; dp counts as 1 under DP attention, whose ranks share the TP group's GPUs."""
    sizes = [info.get(key) for key in ("tp_size", "pp_size", "dp_size")]
    if not isinstance(sizes[0], int):
        return None
    tp, pp, dp = (size if isinstance(size, int) and size > 0 else 1 for size in sizes)
    return tp * pp * (1 if info.get("enable_dp_attention") else dp)
