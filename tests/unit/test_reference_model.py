"""The embedded model against a plain implementation, and however work is split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from pytest_dsr1.reference import model as model_module
from pytest_dsr1.reference.attention import RUN_OVERHEAD, Chunk, split_runs
from pytest_dsr1.reference.model import Model, log_softmax, route
from pytest_dsr1.reference.weights import CheckpointError, ModelConfig, read_tensors
from tests import tiny_deepseek
from tests.tiny_deepseek import plain_logprobs, plain_route

Ids = npt.NDArray[np.intp]
TINY = tiny_deepseek.make()
#: float32 against float64, in log-probabilities of a random model.
CLOSE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """As in the engine's process; on a busy machine two threads are 20 times slower."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(TINY.save(tmp_path_factory.mktemp("tiny")))


def random_ids(count: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, TINY.config["vocab_size"], count)


def largest_difference(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


class TestArchitecture:
    """DeepSeek-V3, whatever way it is computed."""

    @pytest.mark.parametrize("count", [1, 2, 40, 70])
    def test_agrees_with_the_plain_form(self, model: Model, count: int) -> None:
        """The folded, batched computation equals the plain one, for few and many tokens."""
        ids = random_ids(count)
        assert largest_difference(model.logprobs(ids), plain_logprobs(TINY, ids.tolist())) < CLOSE

    @pytest.mark.parametrize(
        "change",
        [
            {"norm_topk_prob": False},
            {"topk_group": 3},
            {"num_experts_per_tok": 1},
            {"num_experts_per_tok": 3},
            {"routed_scaling_factor": 1.0},
            {"rope_theta": 100.0},
        ],
        ids=str,
    )
    def test_follows_the_configuration(self, tmp_path: Path, change: dict[str, Any]) -> None:
        """Each setting changes the result to that of the plain form with the same setting."""
        changed, ids = TINY.with_config(**change), random_ids(60)
        logprobs = Model.load(changed.save(tmp_path)).logprobs(ids)
        assert largest_difference(logprobs, plain_logprobs(changed, ids.tolist())) < CLOSE
        assert largest_difference(logprobs, plain_logprobs(TINY, ids.tolist())) > 10 * CLOSE

    def test_sharp_attention_is_exact_too(self, tmp_path: Path) -> None:
        """Scores that overflow float32 are computed again with the maximum subtracted."""
        sharp, ids = TINY.scaled("q_b_proj", 300), random_ids(60)
        model = Model.load(sharp.save(tmp_path))
        plain = plain_logprobs(sharp, ids.tolist())
        assert largest_difference(model.logprobs(ids), plain) < 1e-2  # errors grow with the scores
        assert largest_difference(decode_alone(model, ids, 5), plain[-6:]) < 1e-2

    def test_long_contexts_run(self, model: Model) -> None:
        """9,216 tokens in chunks give the same logprobs as in one piece."""
        ids = random_ids(9_216)
        cache = model.new_cache(1)
        for start in range(0, len(ids), 1024):
            last = start + 1024 == len(ids)
            logits = model.prefill(cache, [Chunk(0, 1024, int(last))], ids[start : start + 1024])
        assert cache.lengths[0] == 9_216
        assert largest_difference(log_softmax(logits), model.logprobs(ids)[-1:]) < CLOSE


class TestRouting:
    """Sigmoid scores, a bias that only chooses, groups that limit."""

    @given(
        seed=st.integers(0, 2**32 - 1),
        groups=st.sampled_from([(1, 1), (2, 1), (3, 1), (3, 2)]),
        top=st.integers(1, 2),
    )
    def test_chooses_and_weighs_as_the_plain_form(self, seed: int, groups: tuple[int, int], top: int) -> None:
        """Whatever the scores, bias and groups: the same experts with the same shares."""
        raw = TINY.config | {"n_group": groups[0], "topk_group": groups[1], "num_experts_per_tok": top}
        random = np.random.default_rng(seed)
        logits = (2 * random.standard_normal((7, 6))).astype(np.float32)
        bias = (0.2 * random.standard_normal(6)).astype(np.float32)
        chosen, shares = route(logits.copy(), bias, config_of(raw))
        for row in range(len(logits)):
            found = dict(zip(chosen[row].tolist(), shares[row].tolist(), strict=True))
            expected = dict(plain_route(1 / (1 + np.exp(-logits[row].astype(np.float64))), bias, raw))
            assert found == pytest.approx(expected, rel=1e-5)

    def test_the_bias_does_not_weigh(self) -> None:
        """A bias that decides the choice leaves the shares those of the scores alone."""
        config = config_of(TINY.config | {"n_group": 1, "topk_group": 1})
        bias = np.array([9, 9, 0, 0, 0, 0], np.float32)
        chosen, shares = route(np.zeros((1, 6), np.float32), bias, config)
        assert sorted(chosen[0].tolist()) == [0, 1]
        assert shares[0].tolist() == pytest.approx([1.25, 1.25])

    def test_chosen_experts_only_is_the_same_as_all(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sorting tokens by expert is a matter of speed."""
        ids = random_ids(80)
        monkeypatch.setattr(model_module, "SPARSE_FROM", 1)
        sparse = model.logprobs(ids)
        monkeypatch.setattr(model_module, "SPARSE_FROM", 1000)
        assert largest_difference(sparse, model.logprobs(ids)) < CLOSE


class TestBatching:
    """However the work is cut up, every sequence gets what it gets alone."""

    @pytest.mark.parametrize("sizes", [(1,) * 30, (7, 23), (29, 1), (16, 14), (30,)])
    def test_chunks_are_the_same_as_the_whole(self, model: Model, sizes: tuple[int, ...]) -> None:
        """A prompt computed in chunks has the logprobs of one computed at once."""
        ids, cache, start, rows = random_ids(30), model.new_cache(2), 0, []
        for size in sizes:
            rows.append(log_softmax(model.prefill(cache, [Chunk(1, size, size)], ids[start : start + size])))
            start += size
        assert largest_difference(np.concatenate(rows), model.logprobs(ids)) < CLOSE

    def test_prompts_together_are_the_same_as_alone(self, model: Model) -> None:
        """Chunks of several prompts in one pass, some unfinished, some wanted whole."""
        prompts = [random_ids(count, seed) for seed, count in enumerate([5, 90, 33])]
        cache = model.new_cache(3)
        logits = model.prefill(
            cache,
            [Chunk(0, 5, 5), Chunk(1, 40, 0), Chunk(2, 33, 1)],
            np.concatenate([prompts[0], prompts[1][:40], prompts[2]]),
        )
        rest = model.prefill(cache, [Chunk(1, 50, 50)], prompts[1][40:])
        assert logits.shape[0] == 6
        assert largest_difference(log_softmax(logits[:5]), model.logprobs(prompts[0])) < CLOSE
        assert largest_difference(log_softmax(logits[5:]), model.logprobs(prompts[2])[-1:]) < CLOSE
        assert largest_difference(log_softmax(rest), model.logprobs(prompts[1])[40:]) < CLOSE

    def test_decoding_together_is_the_same_as_alone(self, model: Model) -> None:
        """A step over sequences of very different lengths, some in runs of their own."""
        lengths = [3, 1500, 4, 5, 2600, 2500, 1]
        prompts = [random_ids(length + 4, seed) for seed, length in enumerate(lengths)]
        cache = model.new_cache(8)
        for slot, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            model.prefill(cache, [Chunk(slot, length, 0)], prompt[:length])
        assert len(split_runs(cache.lengths[:7])) > 1
        alone = [model.logprobs(prompt) for prompt in prompts]
        for step in range(4):
            ids = np.array([p[length + step] for p, length in zip(prompts, lengths, strict=True)])
            logits = log_softmax(model.decode(cache, ids))
            for slot, length in enumerate(lengths):
                assert largest_difference(logits[slot], alone[slot][length + step]) < CLOSE

    def test_a_slot_that_was_used_before_is_as_new(self, model: Model) -> None:
        """A slot has no trace of the sequences that were in it before."""
        cache, ids = model.new_cache(3), random_ids(12)
        model.prefill(cache, [Chunk(0, 50, 0), Chunk(1, 20, 0)], random_ids(70, 1))
        cache.clear(0)
        cache.move(1, 0)
        cache.clear(0)
        model.prefill(cache, [Chunk(1, 11, 0)], ids[:11])
        cache.move(1, 0)
        model.prefill(cache, [Chunk(1, 300, 0)], random_ids(300, 2))  # makes the cache grow, with neighbours in it
        logits = model.decode(cache, np.array([ids[11], 3]))
        assert largest_difference(log_softmax(logits)[0], model.logprobs(ids)[-1]) < CLOSE

    @given(st.lists(st.integers(1, 10_000), min_size=1, max_size=40))
    def test_runs_cover_every_slot_and_waste_little(self, lengths: list[int]) -> None:
        """Runs cover all slots in order and waste at most the cost of a product."""
        runs = split_runs(np.array(lengths))
        assert [slot for start, stop, _ in runs for slot in range(start, stop)] == list(range(len(lengths)))
        for start, stop, longest in runs:
            part = lengths[start:stop]
            assert longest == max(part)
            assert longest * len(part) - sum(part) <= RUN_OVERHEAD * len(part)


class TestCheckpoint:
    """A Hugging Face folder, or a message that says what is wrong with it."""

    def test_bf16_is_widened_without_loss(self, tmp_path: Path) -> None:
        """The stored 16 bits are the upper half of a float32."""
        bits = np.array([0x3F80, 0xC049, 0x0001], "<u2")
        header = json.dumps({"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
        path = tmp_path / "t.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
        assert read_tensors(path)["x"].view(np.uint32).tolist() == [0x3F800000, 0xC0490000, 0x00010000]

    def test_another_type_is_an_error(self, tmp_path: Path) -> None:
        """Quantised tensors are not read as if they were numbers."""
        save_file({"x": np.zeros(3, np.int8)}, tmp_path / "t.safetensors")
        with pytest.raises(CheckpointError, match="x is I8; expected BF16 or F32"):
            read_tensors(tmp_path / "t.safetensors")

    def test_yarn_of_factor_one_changes_nothing(self, tmp_path: Path) -> None:
        """Some servers want the entry there."""
        stretched = TINY.with_config(rope_scaling={"type": "yarn", "factor": 1.0, "mscale": 1.0})
        ids = random_ids(20)
        model = Model.load(stretched.save(tmp_path))
        assert largest_difference(model.logprobs(ids), plain_logprobs(TINY, ids.tolist())) < CLOSE

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "llama"}, "model_type is 'llama'"),
            ({"rope_scaling": {"rope_type": "yarn", "factor": 40}}, "rope_type is 'yarn'"),
            ({"rope_interleave": False}, "rope_interleave is False"),
            ({"q_lora_rank": None}, "q_lora_rank is None"),
            ({"v_head_dim": 7}, r"kv_b_proj\.weight has shape"),
            ({"num_hidden_layers": 4}, r"no model\.layers\.3\."),
        ],
        ids=str,
    )
    def test_what_it_cannot_compute_is_an_error(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        """Another architecture, or tensors that do not fit the configuration, are named."""
        with pytest.raises(CheckpointError, match=message):
            Model.load(TINY.with_config(**change).save(tmp_path))

    def test_a_missing_field_is_named(self, tmp_path: Path) -> None:
        """Nothing is guessed."""
        config = {name: value for name, value in TINY.config.items() if name != "n_group"}
        with pytest.raises(CheckpointError, match="has no 'n_group'"):
            Model.load(replace(TINY, config=config).save(tmp_path))

    def test_an_absent_folder_is_named(self, tmp_path: Path) -> None:
        """The path is in the message."""
        with pytest.raises(CheckpointError, match=r"nowhere/config\.json"):
            Model.load(tmp_path / "nowhere")


def config_of(raw: dict[str, Any]) -> ModelConfig:
    """A configuration whose routing is `raw`'s."""
    return ModelConfig(
        **dict.fromkeys(
            ["vocab_size", "hidden_size", "layers", "heads", "q_lora_rank", "kv_lora_rank", "nope_dim", "rope_dim"], 2
        ),
        v_dim=2,
        first_dense_layers=0,
        experts=6,
        experts_per_token=raw["num_experts_per_tok"],
        groups=raw["n_group"],
        groups_per_token=raw["topk_group"],
        normalise_top_k=raw["norm_topk_prob"],
        routed_scaling=raw["routed_scaling_factor"],
        norm_eps=1e-6,
        rope_theta=10000.0,
        context_length=16,
        eos_token_ids=frozenset(),
    )


def decode_alone(model: Model, ids: Ids, steps: int) -> npt.NDArray[np.float32]:
    """The last steps + 1 rows of logprobs, with the last `steps` tokens decoded."""
    cache = model.new_cache(1)
    rows = [model.prefill(cache, [Chunk(0, len(ids) - steps, 1)], ids[: len(ids) - steps])]
    rows += [model.decode(cache, ids[at : at + 1]) for at in range(len(ids) - steps, len(ids))]
    return np.concatenate([log_softmax(row) for row in rows])
