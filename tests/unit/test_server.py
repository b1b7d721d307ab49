"""What a server says of itself, and how many GPUs that makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from pytest_dsr1.core.server import Served, changes_between, count_gpus, is_loopback


@pytest.mark.parametrize(
    ("info", "gpus"),
    [
        ({"tp_size": 8}, 8),
        ({"tp_size": 4, "pp_size": 2, "dp_size": 1}, 8),
        ({"tp_size": 4, "dp_size": 2}, 8),
        ({"tp_size": 8, "dp_size": 8, "enable_dp_attention": True}, 8),
        ({}, None),
        ({"tp_size": "8"}, None),
    ],
)
def test_gpus_are_tp_pp_dp(info: dict[str, Any], gpus: int | None) -> None:
    """Ranks of DP attention share the TP group's GPUs; who says nothing has an unknown number."""
    assert count_gpus(info) == gpus


def test_typed_tp_is_only_an_assumption() -> None:
    """The server's word comes first; --tp stands in, marked, where it says nothing."""
    assert Served.from_answers("u", "m", {"tp_size": 4}, tp=8).num_gpus == 4
    assumed = Served.from_answers("u", "m", {}, tp=8)
    assert (assumed.num_gpus, assumed.num_gpus_source) == (8, "assumed")


def test_reference_engine_is_known_by_its_word() -> None:
    """It is one, whoever started it."""
    served = Served.from_answers("u", "m", {"engine": "pytest-dsr1-reference"}, tp=8)
    assert (served.is_reference, served.num_gpus) == (True, 1)


def test_url_and_model_suffice() -> None:
    """A server that somebody else started is an external one."""
    served = Served(url="http://127.0.0.1:8000/", model="llama")
    assert (served.url, served.engine, served.num_gpus) == ("http://127.0.0.1:8000", "external", None)


@pytest.mark.parametrize(
    ("info", "names"),
    [
        ({}, ("llama",)),
        ({"model_path": "/models/llama", "tokenizer_path": "/tok"}, ("/tok", "/models/llama", "llama")),
        ({"model_path": "llama", "tokenizer_path": None}, ("llama",)),
        ({"model_path": "", "tokenizer_path": 3}, ("llama",)),
    ],
)
def test_names_of_the_models_files(info: dict[str, Any], names: tuple[str, ...]) -> None:
    """Those that the server reports come first; each is there once."""
    assert Served(url="u", model="llama", info=info).names == names


def identity_changes(before: Served, after: Served) -> tuple[str, ...]:
    return changes_between(before.to_fields(), after.to_fields())


def test_identity_is_process_model_and_arguments() -> None:
    """What changes from one answer to the next of the same server is no part of it."""
    before = replace(Served.from_answers("u", "m", {"version": "1", "tp_size": 2}), process={"pid": 7, "started": 1.5})
    assert identity_changes(before, replace(before, info={**before.info, "last_gen_throughput": 3.0})) == ()
    after = replace(Served.from_answers("u", "m", {"version": "2", "tp_size": 4}), process={"pid": 8, "started": 1.5})
    assert identity_changes(before, after) == (
        "num_gpus: 2 -> 4",
        "process pid: 7 -> 8",
        "version: 1 -> 2",
        "tp_size: 2 -> 4",
    )
    # /server_info may fail once; whoever answers in another's place says something else.
    assert identity_changes(before, replace(before, info={}, num_gpus=None)) == ()


def test_secrets_stay_out_of_results() -> None:
    """Only named fields are kept of what a server says."""
    fields = Served.from_answers(
        "u", "m", {"tp_size": 1, "api_key": "secret", "ssl_keyfile_password": "secret"}
    ).to_fields()
    assert "secret" not in str(fields)


def test_what_a_server_says_can_be_written() -> None:
    """JSON can hold half of a surrogate pair, which no file in UTF-8 can."""
    served = Served.from_answers("u", "m\udcff", {"version": "v\ud83d", "dtype": ["naïve", {"a\udcff": 1}]})
    fields = served.to_fields()
    assert (served.model, fields["model"], fields["info"]["version"]) == ("m?", "m?", "v?")
    assert fields["info"]["dtype"] == ["naïve", {"a?": 1}]
    assert msgspec.json.encode(fields)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:8888", True),
        ("http://127.8.8.8", True),
        ("http://localhost:1/", True),
        ("http://[::1]:8888", True),
        ("http://10.0.0.1:8888", False),
        ("http://example.org", False),
    ],
)
def test_loopback_is_this_machine(url: str, loopback: bool) -> None:
    """There, proxies are ignored."""
    assert is_loopback(url) is loopback
