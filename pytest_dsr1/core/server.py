"""A server as it describes itself: its model, engine and number of GPUs."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pytest_dsr1.core.config import SweepConfig, leaderboard_for

#: The embedded engine's name in /server_info.
REFERENCE_ENGINE = "pytest-dsr1-reference"
#: Fields of /server_info that are kept with a result; all others are dropped, since they may be secrets.
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
    """A running server and the model that it serves.

    URL and model suffice: `Served(url="http://127.0.0.1:8000", model="llama")`.

    :param url: Base URL, without `/v1`.
    :param engine: `external`, `sglang` (launched by us) or `reference`; kept with every result.
    :param info: The answers of /server_info, /model_info and /v1/models, in one mapping.
    :param num_gpus: tp x pp x dp; None if unknown.
    :param num_gpus_source: `server`, `assumed` (from --tp) or `unknown`.
    :param process: Id and start (epoch seconds) of the process that listens at `url`, where it is visible from here.
    :param launch: How it was started, where we did that: `recipe`, `command`, `environment`, `log`, `start_s`.
    :param concurrent_servers: Servers that are measured at the same time, this one included.
    """

    url: str
    model: str
    engine: str = "external"
    info: Mapping[str, Any] = field(default_factory=dict)
    num_gpus: int | None = None
    num_gpus_source: str = "unknown"
    process: Mapping[str, Any] | None = None
    launch: Mapping[str, Any] | None = None
    concurrent_servers: int = 1

    def __post_init__(self) -> None:
        # Paths are appended to the URL; the name is written to files.
        object.__setattr__(self, "url", self.url.rstrip("/"))
        object.__setattr__(self, "model", _encodable(self.model))

    @classmethod
    def from_answers(cls, url: str, model: str, info: Mapping[str, Any], tp: int | None = None) -> Served:
        """What a server is by its own answers.

        :param tp: `--tp` as typed. Used, and marked as assumed, only where the server does not report its GPUs.
        """
        reference = info.get("engine") == REFERENCE_ENGINE
        num_gpus = 1 if reference else count_gpus(info)
        return cls(
            url=url,
            model=model,
            engine="reference" if reference else "external",
            info=info,
            num_gpus=tp if num_gpus is None else num_gpus,
            num_gpus_source="server" if num_gpus is not None else "unknown" if tp is None else "assumed",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Folders, or names at the hub, that may have the model's files; each once.

        Those that the server reports come first, then the model's name.
        """
        said = (self.info.get(key) for key in ("tokenizer_path", "model_path"))
        return tuple(dict.fromkeys([*(name for name in said if isinstance(name, str) and name), self.model]))

    @property
    def is_reference(self) -> bool:
        return self.engine == "reference"

    @property
    def context_length(self) -> int | None:
        """Most tokens of prompt and output together; None if it is not reported."""
        for key in ("max_model_len", "context_length", "max_context_length"):
            value = self.info.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    def to_fields(self) -> dict[str, Any]:
        """The `server` object of a result.

        Of `info` it has only the listed fields, so no secrets. A character that UTF-8 cannot encode becomes `?`.
        """
        kept = {key: self.info[key] for key in _KEPT if self.info.get(key) is not None}
        text = json.dumps(vars(self) | {"info": kept}, ensure_ascii=False, default=str)
        fields: dict[str, Any] = json.loads(_encodable(text))
        return fields


def changes_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Differences that show another server, or other arguments of the same one.

    Compares the `server` objects of two results. A field that only one of them has is not a change: /server_info may
    have failed once, or report more than before.
    """
    one, other = _identity(before), _identity(after)
    return tuple(
        f"{name}: {value} -> {other[name]}" for name, value in one.items() if name in other and value != other[name]
    )


def _identity(server: Mapping[str, Any]) -> dict[str, Any]:
    process = {f"process {name}": value for name, value in (server.get("process") or {}).items()}
    said = {name: server[name] for name in ("model", "num_gpus") if server.get(name) is not None}
    return {**said, **process, **(server.get("info") or {})}


def _encodable(text: str) -> str:
    """`text` without lone surrogates, which JSON can hold and UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def is_loopback(url: str) -> bool:
    """Whether `url` points to this machine; proxies are not used for such URLs."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def server_problem(config: SweepConfig, why: str, *, reference: bool, gpus_known: bool) -> str:
    """Why no result of this server could be submitted; empty if it could.

    :param why: Which server was chosen, and the reason.
    :param reference: Whether it is the reference engine.
    """
    urls = [leaderboard_for(scenario, config.leaderboard_url) for scenario in config.scenarios]
    if reference and not all(url is not None and is_loopback(url) for url in urls):
        return (
            f"mode submit, but served by {why}: results of the reference engine are only sent to a leaderboard on this "
            "machine; name the server to be measured with --server-url, or rehearse with --leaderboard-url "
            "http://127.0.0.1:PORT (start a leaderboard with: pytest-dsr1 leaderboard serve)"
        )
    if not gpus_known:
        return "mode submit needs a throughput per GPU, and the server does not say how many GPUs it has; type --tp N"
    return ""


def count_gpus(info: Mapping[str, Any]) -> int | None:
    """tp x pp x dp; None if unknown.

    With DP attention dp counts as 1: its ranks share the GPUs of the TP group.
    """
    sizes = [info.get(key) for key in ("tp_size", "pp_size", "dp_size")]
    if not isinstance(sizes[0], int):
        return None
    tp, pp, dp = (size if isinstance(size, int) and size > 0 else 1 for size in sizes)
    return tp * pp * (1 if info.get("enable_dp_attention") else dp)
