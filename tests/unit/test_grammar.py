"""The grammar of the embedded model: reproducible, consistent, of exact entropy."""

from __future__ import annotations

import json
import math
import re
from importlib import resources
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_dsr1.reference import grammar
from pytest_dsr1.reference.grammar import HELDOUT_SEED, TRAINING_SEED, corpus, document

seeds = st.integers(min_value=0, max_value=2**32)


def text_of(seed: int, opening: str) -> str:
    """A document of the kind that opens so, among the first few of the seed."""
    found = next((each.text for each in corpus(seed, 40) if each.text.startswith(opening)), None)
    assume(found is not None)
    assert found is not None
    return found


class TestCorpus:
    """What a training script and an accuracy task see."""

    def test_heldout_file_is_what_the_grammar_writes(self) -> None:
        """The packaged documents are the first ones of the held-out seed, byte for byte."""
        lines = resources.files("pytest_dsr1.reference").joinpath("heldout.jsonl").read_text().splitlines()
        assert [json.loads(line)["text"] for line in lines] == [each.text for each in corpus(HELDOUT_SEED, len(lines))]

    def test_heldout_documents_are_none_of_the_training_corpus(self) -> None:
        """Not one held-out text is met in thousands of training documents."""
        heldout = {each.text for each in corpus(HELDOUT_SEED, 60)}
        assert heldout.isdisjoint(each.text for each in corpus(TRAINING_SEED, 4000))

    @given(seeds)
    def test_a_longer_corpus_begins_with_the_shorter(self, seed: int) -> None:
        """A seed fixes documents and bits; the count only says where to stop."""
        assert list(corpus(seed, 5))[:3] == list(corpus(seed, 3))

    @given(seeds)
    def test_texts_are_ascii_lines(self, seed: int) -> None:
        """Characters are bytes, and a document ends with its last line."""
        text = document(Random(seed)).text
        assert text.isascii()
        assert text.endswith((".\n", " end\n"))

    def test_entropy_is_about_three_tenths_of_a_bit_per_byte(self) -> None:
        """The floor under any model, which docs and gates quote."""
        documents = list(corpus(3, 500))
        assert sum(each.bits for each in documents) / sum(len(each.text) for each in documents) == pytest.approx(
            0.29, abs=0.01
        )


class TestEntropy:
    """The bits of a document are those of its choices, no more and no less."""

    @given(seeds)
    def test_sums_recounted_from_their_text(self, seed: int) -> None:
        """A page of sums: its bits are those of kind, names, length, words and numbers."""
        found = next((each for each in corpus(seed, 40) if each.text.startswith("Sums")), None)
        assume(found is not None)
        assert found is not None
        rows = found.text.count(" more are ")
        names = math.log2(32 * 31) + 2 * math.log2(32)
        expected = math.log2(16 / 2) + names + math.log2(9) + rows * (3 + 3 + math.log2(90) + math.log2(48))
        assert found.bits == pytest.approx(expected)

    def test_no_series_of_choices_shares_its_text_with_another(self) -> None:
        """No syllable is the beginning of another and no option is repeated."""
        heads = grammar._HEADS
        assert [one for one in heads for other in heads if one != other and other.startswith(one)] == []
        for name, options in vars(grammar).items():
            if name.isupper() and isinstance(options, tuple) and all(isinstance(each, str) for each in options):
                assert len(set(options)) == len(options), name

    def test_every_kind_is_written(self) -> None:
        """Kinds come as often as their weights say, and cost as much."""
        openings = [each.text.split()[0] for each in corpus(11, 4000)]
        shares = {"A": 9 / 16, "Ledger": 3 / 16, "Sums": 2 / 16, "Brackets": 2 / 16}
        for opening, share in shares.items():
            assert openings.count(opening) / len(openings) == pytest.approx(share, abs=0.03)


class TestTruth:
    """Documents are consistent: there is more to learn than the frequency of words."""

    @given(seeds)
    def test_sums_are_right(self, seed: int) -> None:
        """Every addition and every subtraction."""
        text = text_of(seed, "Sums")
        rows = re.findall(r"(\d+) \w+ \w+ and (\d+) more are (\d+)\. (\d+) without (\d+) are (\d+)\.", text)
        assert rows
        for have, more, total, again, less, left in (map(int, row) for row in rows):
            assert (have + more, again - less) == (total, left)
            assert (again, left) == (total, have)

    @given(seeds)
    def test_ledgers_charge_the_listed_prices(self, seed: int) -> None:
        """Amount times the price at the head of the page."""
        text = text_of(seed, "Ledger")
        prices = dict(re.findall(r"All (.+) at (\d) coins", text))
        rows = re.findall(r": \w+, (\d) (.+) at (\d) are (\d+) coins", text)
        assert rows
        for count, goods, price, amount in rows:
            assert prices[goods] == price
            assert int(amount) == int(count) * int(price)

    @given(seeds)
    def test_brackets_close_what_was_opened_last(self, seed: int) -> None:
        """Each line is one tree."""
        for line in text_of(seed, "Brackets").splitlines()[1:]:
            opened: list[str] = []
            for tag in line.split()[:-1]:
                if tag.startswith("</"):
                    assert opened.pop() == tag[2:-1]
                else:
                    opened.append(tag[1:-1])
            assert opened == []

    @given(seeds)
    def test_lists_answer_from_the_list(self, seed: int) -> None:
        """Numbers, names, repetitions and neighbours are those of the first line."""
        first, *rest = text_of(seed, "A list").splitlines()
        pairs = re.findall(r"(\w+) (\d{3})", first)
        codes = dict(pairs)
        names = list(codes)
        for line in rest:
            if line.startswith("The number of"):
                name, code = re.findall(r"of (\w+)\? (\d+)\.", line)[0]
                assert codes[name] == code
            elif line.startswith("Who has"):
                code, name = re.findall(r"has (\d+)\? (\w+)\.", line)[0]
                assert codes[name] == code
            elif line.startswith("Who comes"):
                name, follower = re.findall(r"after (\w+)\? (\w+)\.", line)[0]
                assert names[names.index(name) + 1] == follower
            else:
                again = re.findall(r"(\w+) (\d{3})", line)
                assert again == (pairs[::-1] if line.startswith("Backwards") else pairs)

    @given(seeds)
    def test_stories_end_with_who_had_what(self, seed: int) -> None:
        """The last line follows from the gifts on the way."""
        text = text_of(seed, "A story")
        holders = {thing: name for name, thing in re.findall(r"^(\w+) had a (\w+) worth", text, re.MULTILINE)}
        for giver, thing, taker in re.findall(r"(\w+) \w+ the (\w+) to (\w+) the \w+, and", text):
            assert holders[thing] == giver
            holders[thing] = taker
        ending = re.findall(r"(\w+) had the (\w+)", text.splitlines()[-1])
        assert holders == {thing: name for name, thing in ending}
