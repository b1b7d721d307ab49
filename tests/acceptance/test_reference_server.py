"""The embedded engine as its clients meet it: SGLang's protocol on loopback."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from pytest_dsr1.reference.model import Model
from tests import tiny_deepseek
from tests.engine import running_engine
from tests.engine_client import DEADLINE_S, complete, events, metric, post

CONTEXT = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_deepseek.make(context=CONTEXT).save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model.load(folder)


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_engine(tmp_path_factory.mktemp("log"), folder) as served:
        yield served.url


class TestCompletions:
    """Prompts in, text out."""

    def test_continues_a_prompt(self, url: str, model: Model) -> None:
        """With the model's likeliest tokens, in SGLang's object."""
        answer = complete(url, prompt="Once", max_tokens=3, model="any name")
        ids = post(url, "/tokenize", prompt="Once").json()["tokens"]
        for _ in range(3):
            ids.append(int(model.logprobs(ids)[-1].argmax()))
        (choice,) = answer["choices"]
        assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
        assert (answer["object"], answer["model"]) == ("text_completion", "any name")
        assert choice == {
            "index": 0,
            "text": choice["text"],
            "logprobs": None,
            "finish_reason": "length",
            "matched_stop": None,
        }
        assert choice["text"] == complete(url, prompt=ids[:-3], max_tokens=3)["choices"][0]["text"]
        assert answer["usage"] == {
            "prompt_tokens": 4,
            "total_tokens": 7,
            "completion_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 0},
            "reasoning_tokens": 0,
        }

    @pytest.mark.parametrize("prompts", [["Once", "upon a"], [[82, 113], [5, 6, 7]]], ids=["texts", "ids"])
    def test_several_prompts_get_a_choice_each(self, url: str, prompts: list[Any]) -> None:
        """In their order, each what it gets alone; usage counts them all."""
        answer = complete(url, prompt=prompts, max_tokens=4)
        singles = [complete(url, prompt=prompt, max_tokens=4) for prompt in prompts]
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        texts = [choice["text"] for choice in answer["choices"]]
        assert texts == [single["choices"][0]["text"] for single in singles]
        assert answer["usage"]["total_tokens"] == sum(single["usage"]["total_tokens"] for single in singles)

    def test_many_at_once_get_what_they_get_alone(self, url: str) -> None:
        """Continuous batching shows in nothing but speed."""
        prompts = [np.random.default_rng(seed).integers(3, 259, 3 + 7 * seed).tolist() for seed in range(12)]
        alone = [complete(url, prompt=prompt, max_tokens=9)["choices"] for prompt in prompts]
        with ThreadPoolExecutor(12) as pool:
            together = list(pool.map(lambda prompt: complete(url, prompt=prompt, max_tokens=9)["choices"], prompts))
        assert together == alone

    def test_a_seed_repeats_a_draw(self, url: str) -> None:
        """At a temperature; without one too, since the default draws."""
        draws = [
            complete(url, prompt=[5, 6], max_tokens=20, temperature=1.5, seed=seed)["choices"][0]["text"]
            for seed in (1, 1, 2)
        ]
        assert draws[0] == draws[1] != draws[2]

    def test_a_stop_string_ends_the_text_before_it(self, url: str) -> None:
        """With finish_reason stop and the string in matched_stop."""
        whole = complete(url, prompt=[40, 41], max_tokens=40)["choices"][0]["text"]
        stop = whole[5:7]
        (choice,) = complete(url, prompt=[40, 41], max_tokens=40, stop=["no such text", stop])["choices"]
        assert choice["text"] == whole[: whole.index(stop)]
        assert (choice["finish_reason"], choice["matched_stop"]) == ("stop", stop)

    def test_end_of_text_ends_it_unless_ignored(self, tmp_path: Path) -> None:
        """A model that says nothing else stops at once, or goes on to max_tokens."""
        only_end = tiny_deepseek.make(context=CONTEXT)
        only_end.tensors["lm_head.weight"][2] *= 0
        only_end.tensors["lm_head.weight"][2, 0] = 1000
        only_end.tensors["model.norm.weight"][:] = np.abs(only_end.tensors["model.norm.weight"])
        only_end.tensors["model.embed_tokens.weight"][:, 0] = 100
        with running_engine(tmp_path, only_end.save(tmp_path / "m")) as served:
            stopped = complete(served.url, prompt=[9], max_tokens=5, ignore_eos=False)
            ignored = complete(served.url, prompt=[9], max_tokens=5)
        assert stopped["choices"][0]["finish_reason"] == "stop"
        assert stopped["choices"][0]["matched_stop"] == 2
        assert stopped["usage"]["completion_tokens"] == 1
        assert ignored["usage"]["completion_tokens"] == 5
        assert ignored["choices"][0]["text"] == ""


class TestStreams:
    """One event per token."""

    def test_events_have_sglangs_shape(self, url: str) -> None:
        """One event per token, the last with the reason; then usage; then [DONE]."""
        *tokens, usage = events(url, prompt=[5, 6], max_tokens=5, stream_options={"include_usage": True})
        whole = complete(url, prompt=[5, 6], max_tokens=5)
        assert len(tokens) == 5
        assert "".join(event["choices"][0]["text"] for event in tokens) == whole["choices"][0]["text"]
        for event in tokens:
            assert event == {
                "id": tokens[0]["id"],
                "object": "text_completion",
                "created": tokens[0]["created"],
                "model": "pytest-dsr1-reference",
                "choices": [event["choices"][0]],
                "usage": None,
            }
            assert set(event["choices"][0]) == {"index", "text", "logprobs", "finish_reason", "matched_stop"}
        assert [event["choices"][0]["finish_reason"] for event in tokens] == [None] * 4 + ["length"]
        assert (usage["choices"], usage["usage"]) == ([], whole["usage"])

    def test_usage_only_if_wanted(self, url: str) -> None:
        """Without the option the stream ends with its last token."""
        assert all(event["choices"] for event in events(url, prompt=[5], max_tokens=2))

    def test_continuous_usage_counts_up(self, url: str) -> None:
        """Every event says how many tokens there are so far."""
        found = events(url, prompt=[5], max_tokens=3, stream_options={"continuous_usage_stats": True})
        assert [event["usage"]["completion_tokens"] for event in found] == [1, 2, 3]

    def test_characters_are_not_split(self, url: str) -> None:
        """Random bytes are mostly invalid text; the joined events equal the whole answer."""
        options = {"prompt": [5, 6], "max_tokens": 200, "temperature": 5.0, "seed": 3}
        found = events(url, **options)
        assert len(found) == 200
        texts = [event["choices"][0]["text"] for event in found]
        assert "".join(texts) == complete(url, **options)["choices"][0]["text"]
        assert "" in texts

    def test_a_stop_string_is_held_back(self, url: str) -> None:
        """Its beginning does not show in a stream either."""
        whole = complete(url, prompt=[40, 41], max_tokens=40)["choices"][0]["text"]
        found = events(url, prompt=[40, 41], max_tokens=40, stop=whole[5:8])
        text = "".join(event["choices"][0]["text"] for event in found)
        assert text == whole[: whole.index(whole[5:8])]
        assert found[-1]["choices"][0]["finish_reason"] == "stop"

    def test_streamed_logprobs_are_those_of_the_whole(self, url: str) -> None:
        """Echo included: the first event has the prompt's."""
        options = {"prompt": [5, 6, 7], "max_tokens": 3, "echo": True, "logprobs": 2}
        parts = [event["choices"][0]["logprobs"] for event in events(url, **options)]
        whole = complete(url, **options)["choices"][0]["logprobs"]
        assert {name: [item for part in parts for item in part[name]] for name in whole} == whole

    def test_a_connection_is_kept(self, url: str) -> None:
        """Streams and errors leave it usable."""
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=DEADLINE_S)
        sockets = set()
        for prompt in ([5], [10_000], [6]):
            body = json.dumps({"prompt": prompt, "max_tokens": 2, "stream": True})
            connection.request("POST", "/v1/completions", body)
            sockets.add(connection.sock)
            assert connection.getresponse().read()
        assert len(sockets) == 1
        connection.close()


class TestLogprobs:
    """What lm-eval asks for."""

    def test_echo_scores_the_prompt(self, url: str, model: Model) -> None:
        """Null first, one generated token last, the model's own logprobs between."""
        ids = [40, 41, 42, 43, 44]
        (choice,) = complete(url, prompt=[ids], max_tokens=1, logprobs=1, echo=True, seed=1234)["choices"]
        expected = model.logprobs(ids)
        found = choice["logprobs"]
        assert {name: len(values) for name, values in found.items()} == dict.fromkeys(found, 6)
        assert set(found) == {"text_offset", "token_logprobs", "tokens", "top_logprobs"}
        assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
        assert found["token_logprobs"][1:5] == pytest.approx(expected[np.arange(4), ids[1:]].tolist(), abs=1e-4)
        tops = [next(iter(top.values())) for top in found["top_logprobs"][1:]]
        assert tops == pytest.approx(expected.max(axis=1).tolist(), abs=1e-4)
        assert choice["text"] == "".join(found["tokens"])

    def test_long_prompts_are_scored_in_chunks(self, url: str, model: Model) -> None:
        """As if computed at once; several at a time."""
        prompts = [np.random.default_rng(seed).integers(3, 259, CONTEXT - 1).tolist() for seed in range(4)]
        answer = complete(url, prompt=prompts, max_tokens=1, logprobs=1, echo=True)
        for prompt, choice in zip(prompts, answer["choices"], strict=True):
            expected = model.logprobs(prompt)[np.arange(CONTEXT - 2), prompt[1:]]
            assert choice["logprobs"]["token_logprobs"][1:-1] == pytest.approx(expected.tolist(), abs=1e-4)

    def test_without_echo_only_what_is_generated(self, url: str) -> None:
        """As many entries as tokens, none of them null."""
        found = complete(url, prompt=[5, 6], max_tokens=3, logprobs=0)["choices"][0]["logprobs"]
        assert [len(found["token_logprobs"]), len(found["tokens"]), found["top_logprobs"]] == [3, 3, []]
        assert None not in found["token_logprobs"]


class TestErrors:
    """Refused in SGLang's form, and the server goes on."""

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({"prompt": [5, 260]}, "token id 260; the vocabulary's ids are 0 to 259"),
            ({"prompt": [-1]}, "token id -1"),
            ({"prompt": [5] * 400}, "The input (400 tokens) is longer than the model's context length (400 tokens)."),
            ({"prompt": [5] * 390, "max_tokens": 11}, "(390 tokens) and max_tokens (11) together exceed"),
            ({"prompt": [5], "max_tokens": 0, "echo": True}, "Expected `int` >= 1 - at `$.max_tokens`"),
            ({"prompt": [5], "max_tokens": "7"}, "$.max_tokens"),
            ({"prompt": [5], "stream": "yes"}, "$.stream"),
            ({"prompt": [5], "temperature": -1}, "$.temperature"),
            ({"prompt": [5], "logprobs": True}, "$.logprobs"),
            ({"prompt": [5], "logprobs": 300}, "at most the vocabulary size (260), got 300"),
            ({"prompt": [5], "n": 2}, "Expected `int` <= 1 - at `$.n`"),
            ({"prompt": [5], "best_of": 2}, "$.best_of"),
            ({"prompt": [5], "top_p": 0.5}, "$.top_p"),
            ({"prompt": [5], "seed": -1}, "$.seed"),
            ({"prompt": [5], "stop": 7}, "$.stop"),
            ({"prompt": [5], "stop": ["a", 7]}, "$.stop[1]"),
            ({"prompt": [5], "stream_options": []}, "$.stream_options"),
            ({"prompt": [5], "stream_options": {"include_usage": "yes"}}, "$.stream_options.include_usage"),
            ({"prompt": [5], "model": 7}, "$.model"),
            ({"prompt": ""}, "The prompt is empty"),
            ({"prompt": []}, "prompt must be a string, a list of token ids"),
            ({"prompt": [[5], "a"]}, "prompt must be a string, a list of token ids"),
            ({}, "prompt must be a string, a list of token ids"),
        ],
        ids=lambda value: None if isinstance(value, str) else str(value)[:40],
    )
    def test_a_bad_request_names_what_is_wrong(self, url: str, body: dict[str, Any], message: str) -> None:
        """Status 400 and the error object."""
        reply = post(url, **body)
        error = reply.json()
        assert message in error["message"]
        assert (reply.status_code, error) == (
            400,
            {
                "object": "error",
                "message": error["message"],
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            },
        )

    @pytest.mark.parametrize(
        "body", [b"", b'{"prompt"', b"[1]", b"\xff", b'{"prompt": "\xff"}', b'{"prompt": ' + b"[" * 5000]
    )
    def test_what_is_no_json_object_is_refused(self, url: str, body: bytes) -> None:
        """Invalid JSON, invalid UTF-8, another type, too deeply nested."""
        reply = requests.post(f"{url}/v1/completions", data=body, timeout=DEADLINE_S)
        assert (reply.status_code, reply.json()["object"]) == (400, "error")

    @pytest.mark.parametrize("encoding", ["gzip", "deflate"])
    def test_a_damaged_compressed_body_is_refused(self, url: str, encoding: str) -> None:
        """Status 400, not 500: the mistake is the client's."""
        headers = {"Content-Encoding": encoding}
        reply = requests.post(f"{url}/v1/completions", data=b"\xff\xff", headers=headers, timeout=DEADLINE_S)
        assert (reply.status_code, reply.json()["code"]) == (400, 400)
        assert encoding in reply.json()["message"]

    def test_null_counts_as_absent(self, url: str) -> None:
        """As in OpenAI's API, whose clients send null for what they leave open."""
        names = ("model", "seed", "stop", "logprobs", "stream", "stream_options", "n", "best_of", "top_p")
        answer = complete(url, prompt=[5], max_tokens=None, **dict.fromkeys(names))
        assert (answer["model"], answer["usage"]["completion_tokens"]) == ("pytest-dsr1-reference", 16)

    @pytest.mark.parametrize("name", ["\0", '"\0"', '"text":"\0"'])
    def test_any_model_name_is_answered(self, url: str, name: str) -> None:
        """Also a name that looks like the placeholder in a stream's rendered events."""
        whole = complete(url, prompt=[5, 6], max_tokens=3, model=name)
        found = events(url, prompt=[5, 6], max_tokens=3, model=name)
        assert whole["model"] == name
        assert {event["model"] for event in found} == {name}
        assert "".join(event["choices"][0]["text"] for event in found) == whole["choices"][0]["text"]

    def test_an_unknown_path_is_a_404(self, url: str) -> None:
        """In the same form."""
        reply = requests.get(f"{url}/version", timeout=DEADLINE_S)
        assert (reply.status_code, reply.json()["code"]) == (404, 404)


class TestEndpoints:
    """What a server says of itself."""

    def test_it_names_itself(self, url: str, folder: Path) -> None:
        """So that nobody takes its results for a real engine's."""
        info = requests.get(f"{url}/server_info", timeout=DEADLINE_S).json()
        assert info["engine"] == "pytest-dsr1-reference"
        assert (info["vocab_size"], info["context_length"], info["tp_size"]) == (260, CONTEXT, 1)
        assert info["disable_radix_cache"] is True
        assert info["model_path"] == info["tokenizer_path"] == str(folder.resolve())
        assert requests.get(f"{url}/get_server_info", timeout=DEADLINE_S).json() == info

    def test_one_model(self, url: str) -> None:
        """With its context length, where clients look for it."""
        (entry,) = requests.get(f"{url}/v1/models", timeout=DEADLINE_S).json()["data"]
        assert (entry["id"], entry["max_model_len"]) == ("pytest-dsr1-reference", CONTEXT)

    @pytest.mark.parametrize("path", ["/health", "/health_generate", "/flush_cache"])
    def test_an_idle_server_is_well(self, url: str, path: str) -> None:
        """Each answers 200."""
        assert requests.get(url + path, timeout=DEADLINE_S).status_code == 200

    def test_tokenize(self, url: str) -> None:
        """Ids of a text, or of several; no special tokens from a tokenizer that adds none."""
        one = post(url, "/tokenize", prompt="hé", add_special_tokens=False).json()
        several = post(url, "/tokenize", prompt=["hé", ""]).json()
        assert (len(one["tokens"]), one["count"], one["max_model_len"]) == (3, 3, CONTEXT)
        assert (several["tokens"], several["count"]) == ([one["tokens"], []], [3, 0])
        assert post(url, "/tokenize", prompt=7).status_code == 400

    def test_metrics_count_tokens(self, url: str) -> None:
        """In Prometheus' format."""
        before = metric(url, "prompt_tokens_total"), metric(url, "generation_tokens_total")
        complete(url, prompt=[5, 6, 7], max_tokens=4)
        after = metric(url, "prompt_tokens_total"), metric(url, "generation_tokens_total")
        assert (after[0] - before[0], after[1] - before[1]) == (3, 4)
