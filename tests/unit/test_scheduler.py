"""Continuous batching: results as if computed alone, slots freed, nobody starved."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from pytest_dsr1.reference.model import Model
from pytest_dsr1.reference.scheduler import FinishReason, Scheduler, Scores, Sequence
from tests import tiny_deepseek

VOCAB = 260


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """As in the engine's process; on a busy machine two threads are 20 times slower."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(tiny_deepseek.make(layers=2).save(tmp_path_factory.mktemp("tiny")))


class Log:
    """Notes each token as it comes."""

    def __init__(self) -> None:
        self.tokens: list[tuple[Sequence, int]] = []

    def __call__(self, sequence: Sequence) -> None:
        self.tokens.append((sequence, sequence.generated[-1]))


def sequence(length: int, max_tokens: int = 4, *, salt: int = 0, log: Log | None = None, **options: Any) -> Sequence:
    """A sequence with a prompt that its length and `salt` decide."""
    prompt = np.random.default_rng([salt, length]).integers(0, VOCAB, length)
    return Sequence(prompt=prompt, max_tokens=max_tokens, on_token=log or Log(), **options)


def run(scheduler: Scheduler, *sequences: Sequence) -> None:
    for one in sequences:
        scheduler.add(one)
    while scheduler.busy:
        scheduler.step()


def alone(model: Model, one: Sequence) -> list[int]:
    """What greedy decoding gives, from whole forward passes."""
    ids: list[int] = one.prompt.tolist()
    for _ in range(one.max_tokens):
        ids.append(int(model.logprobs(ids)[-1].argmax()))
    return ids[len(one.prompt) :]


class TestTokens:
    """What each sequence gets."""

    # Derandomised: greedy choices that are equal but for rounding may differ between batches.
    @settings(derandomize=True, max_examples=25)
    @given(
        arrivals=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=8),
        cancelled=st.sets(st.integers(0, 7)),
        max_running=st.integers(1, 4),
        prefill_tokens=st.integers(1, 30),
    )
    def test_any_interleaving_gives_every_sequence_its_own_tokens(
        self,
        model: Model,
        arrivals: list[tuple[int, int, int]],
        cancelled: set[int],
        max_running: int,
        prefill_tokens: int,
    ) -> None:
        """Whatever else runs, every sequence that is not cancelled gets its greedy tokens."""
        scheduler = Scheduler(model, max_running=max_running, prefill_tokens=prefill_tokens, prefill_burst=40)
        sequences = [sequence(length, count, salt=seed) for seed, (length, count, _) in enumerate(arrivals)]
        for one, (_, _, steps) in zip(sequences, arrivals, strict=True):
            scheduler.add(one)
            for _ in range(steps):
                scheduler.step()
        for index in cancelled & set(range(len(sequences))):
            scheduler.cancel(sequences[index])
            scheduler.step()
        run(scheduler)
        for index, one in enumerate(sequences):
            if one.finish_reason is not None:
                assert one.generated == alone(model, one)
            else:
                assert index in cancelled
        assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)

    def test_length_ends_a_sequence(self, model: Model) -> None:
        """After max_tokens, with the reason."""
        one = sequence(5, 3)
        run(Scheduler(model), one)
        assert (len(one.generated), one.finish_reason) == (3, FinishReason.LENGTH)

    def test_a_stop_id_ends_a_sequence(self, model: Model) -> None:
        """It is the last token generated, and the reason says so."""
        expected = alone(model, sequence(5, 6))
        one = sequence(5, 6, stop_ids=frozenset({expected[2]}))
        run(Scheduler(model), one)
        end = expected.index(expected[2]) + 1
        assert (one.generated, one.finish_reason) == (expected[:end], FinishReason.STOP)

    def test_the_listener_may_end_a_sequence(self, model: Model) -> None:
        """As a stop string does, which only who has the text can see."""

        def stop_at_two(one: Sequence) -> None:
            if len(one.generated) == 2:
                one.finish_reason = FinishReason.STOP

        one, other = sequence(5, 6), sequence(7, 6)
        one.on_token = stop_at_two
        run(Scheduler(model), one, other)
        assert (len(one.generated), len(other.generated)) == (2, 6)

    def test_a_seed_repeats_a_drawn_sequence(self, model: Model) -> None:
        """In whatever company; another seed draws another one."""
        drawn = []
        for seed, company in [(1, 0), (1, 3), (2, 0)]:
            one = sequence(9, 12, temperature=1.0, seed=seed)
            run(Scheduler(model), one, *[sequence(4, 12, salt=other) for other in range(company)])
            drawn.append(one.generated)
        assert drawn[0] == drawn[1] != drawn[2]

    def test_low_temperatures_draw_the_likeliest(self, model: Model) -> None:
        """The limit of temperature 0."""
        one = sequence(9, 6, temperature=1e-6)
        run(Scheduler(model), one)
        assert one.generated == alone(model, one)


class TestScores:
    """Log-probabilities beside tokens."""

    @pytest.mark.parametrize("prefill_tokens", [3, 512])
    def test_prompt_and_generated_tokens_are_scored(self, model: Model, prefill_tokens: int) -> None:
        """They equal the model's log-probabilities; the first prompt token has none."""
        one = sequence(11, 3, top_logprobs=2, score_prompt=True)
        run(Scheduler(model, prefill_tokens=prefill_tokens), sequence(2), one)
        ids = [*one.prompt.tolist(), *one.generated]
        expected = model.logprobs(ids)
        found = np.concatenate([part.logprobs for part in one.prompt_scores + one.generated_scores])
        assert found == pytest.approx(expected[np.arange(13), ids[1:]], abs=1e-4)
        top = np.concatenate([part.top_ids for part in one.prompt_scores + one.generated_scores])
        assert top.tolist() == np.argsort(-expected[:13], axis=1)[:, :2].tolist()

    @given(st.integers(0, 5))
    def test_as_many_alternatives_as_asked_for(self, top: int) -> None:
        """Likeliest first; none if none is wanted."""
        logits = np.random.default_rng(top).standard_normal((3, 9)).astype(np.float32)
        scores = Scores.of(logits.copy(), np.array([1, 2, 3]), top)
        assert scores.top_ids.tolist() == np.argsort(-logits, axis=1)[:, :top].tolist()
        assert scores.top_logprobs.shape == (3, top)


class TestOrder:
    """Who is computed when."""

    def test_at_most_max_running_at_a_time(self, model: Model) -> None:
        """The rest wait, and come in order."""
        log = Log()
        scheduler = Scheduler(model, max_running=2)
        sequences = [sequence(3, 2, salt=seed, log=log) for seed in range(5)]
        for one in sequences:
            scheduler.add(one)
        most = 0
        while scheduler.busy:
            scheduler.step()
            most = max(most, scheduler.num_running)
        assert most == 2
        firsts = [one for one, _ in itertools.groupby(log.tokens, key=lambda entry: entry[0])]
        assert [sequences.index(one) for one in dict.fromkeys(firsts)] == [0, 1, 2, 3, 4]

    def test_a_burst_of_prompts_shares_passes(self, model: Model) -> None:
        """Prompts that fit are computed in one pass, which gives their first tokens."""
        log = Log()
        scheduler = Scheduler(model, prefill_tokens=30)
        for seed in range(4):
            scheduler.add(sequence(10, salt=seed, log=log))
        scheduler.step()
        assert len(log.tokens) == 3

    def test_a_long_prompt_does_not_hold_up_the_others(self, model: Model) -> None:
        """Between two decode steps at most a burst's tokens of it are computed."""
        log = Log()
        scheduler = Scheduler(model, prefill_tokens=10, prefill_burst=20)
        scheduler.add(sequence(5, 100, log=log))
        scheduler.step()
        scheduler.add(sequence(100, 1))
        for _ in range(9):
            scheduler.step()
        assert 3 <= len(log.tokens) <= 5

    def test_prompts_come_first(self, model: Model) -> None:
        """A new sequence need not wait for those that run to end."""
        log = Log()
        scheduler = Scheduler(model)
        scheduler.add(sequence(5, 100))
        scheduler.step()
        scheduler.step()
        scheduler.add(sequence(6, 1, log=log))
        scheduler.step()
        assert len(log.tokens) == 1

    def test_counts_what_it_computes(self, model: Model) -> None:
        """Prompt and generated tokens, over all sequences."""
        scheduler = Scheduler(model)
        run(scheduler, sequence(5, 3), sequence(8, 2))
        assert (scheduler.prompt_tokens, scheduler.generated_tokens) == (13, 5)


class TestCancel:
    """A sequence nobody waits for any more."""

    @pytest.mark.parametrize("steps", [0, 1, 2, 4])
    def test_wherever_it_is_its_place_is_freed(self, model: Model, steps: int) -> None:
        """Waiting, partly computed or running: it is removed without effect on the others."""
        scheduler = Scheduler(model, max_running=2, prefill_tokens=20)
        first, victim, last = sequence(10, 8, salt=1), sequence(25, 8, salt=2), sequence(6, 8, salt=3)
        for one in (first, victim, last):
            scheduler.add(one)
        for _ in range(steps):
            scheduler.step()
        scheduler.cancel(victim)
        run(scheduler)
        assert first.generated == alone(model, first)
        assert last.generated == alone(model, last)
        assert victim.finish_reason is None

    def test_one_that_has_ended_is_no_error(self, model: Model) -> None:
        """The client may go at the very end."""
        one = sequence(3, 1)
        scheduler = Scheduler(model)
        run(scheduler, one)
        scheduler.cancel(one)
        assert one.finish_reason is FinishReason.LENGTH
