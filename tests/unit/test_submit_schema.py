"""Which label takes which value, and which results may not be submitted."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from pytest_dsr1.core.result import Result
from pytest_dsr1.submit.schema import (
    FIELDS_11,
    FIELDS_14,
    IF_KNOWN,
    EntryError,
    Field,
    SchemaError,
    key_of,
    match_labels,
    recognise,
    values_of,
)
from pytest_dsr1.submit.send import own_objections
from tests.batches import result_fields
from tests.conftest import ROOT

#: The guide's words.
GUIDE = (
    "Team Name",
    "CONC",
    "MI355X E2E (median)",
    "MI355X Throughput per GPU",
    "B200 E2E (median)",
    "B200 Throughput per GPU",
    "E2E Ratio",
    "Throughput Ratio",
    "bits_per_byte",
    "byte_perplexity",
    "word_perplexity",
)


# -- labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", Field)
def test_own_labels_are_recognised(field: Field) -> None:
    """The labels of our own leaderboard, optional or not."""
    assert recognise(field.label) is field
    assert recognise(field.label + IF_KNOWN) is field
    assert recognise(field.label.upper()) is field


@pytest.mark.parametrize(("label", "field"), [*zip(GUIDE, FIELDS_11, strict=True)])
def test_words_of_the_guide_are_recognised(label: str, field: Field) -> None:
    """As the competition's guide names the fields."""
    assert recognise(label) is field


@pytest.mark.parametrize(
    ("label", "field"),
    [
        ("Team", Field.TEAM),
        ("Concurrency (CONC)", Field.CONC),
        ("End-to-End Latency, median [ms]", Field.E2E),
        ("tput per GPU", Field.THROUGHPUT),
        ("E2E Ratio (MI355X/B200)", Field.E2E_RATIO),
        ("Throughput ratio vs B200 (higher is better)", Field.THROUGHPUT_RATIO),
        ("B200 intvty", Field.B200_INTERACTIVITY),
        ("Bits per byte (BPB)", Field.BITS_PER_BYTE),
    ],
)
def test_other_ways_to_say_it(label: str, field: Field) -> None:
    """Units, device names and remarks do not change which field a label names."""
    assert recognise(label) is field


@pytest.mark.parametrize(
    "label",
    [
        *("", "Value 3", "TTFT (median)", "Mean E2E", "P99 E2E (ms)", "Total throughput", "Output throughput per GPU"),
        *("B200 Team", "Model", "🚀", "TPOT ratio", "Throughput", "E2E / Throughput"),
    ],
)
def test_what_may_mean_something_else_is_not_recognised(label: str) -> None:
    """A mean is not a median, and a machine's throughput is not a GPU's."""
    assert recognise(label) is None


def test_eleven_labels_in_our_order() -> None:
    """The competition's Spaces, as the guide words them."""
    assert match_labels(GUIDE).fields == FIELDS_11
    assert match_labels(GUIDE).unknown == ()


@pytest.mark.parametrize("fields", [FIELDS_14, FIELDS_14[::-1], FIELDS_14[:12]], ids=["14", "reversed", "12"])
def test_twelve_and_fourteen_are_filled_by_label(fields: tuple[Field, ...]) -> None:
    """In any order."""
    assert match_labels([field.label for field in fields]).fields == fields


@pytest.mark.parametrize("count", [0, 1, 10, 13, 15])
def test_other_counts_are_refused_with_both_lists(count: int) -> None:
    """Gradio would drop surplus values and report success."""
    with pytest.raises(SchemaError) as caught:
        match_labels((*GUIDE, "a", "b", "c", "d")[:count])
    assert f"takes {count} values; known are 11, 12 and 14" in str(caught.value)
    assert "we send" in str(caught.value)
    assert "11. " in str(caught.value)


def test_swapped_labels_are_refused_side_by_side() -> None:
    """Otherwise figures would get into the wrong columns."""
    swapped = (*GUIDE[:2], GUIDE[3], GUIDE[2], *GUIDE[4:])
    with pytest.raises(SchemaError) as caught:
        match_labels(swapped)
    assert "input 3 has the label 'MI355X Throughput per GPU'" in str(caught.value)
    assert "MI355X Throughput per GPU  E2E (median) (ms)" in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((*GUIDE[:10], GUIDE[9]), "byte_perplexity"),
        ((*GUIDE, "Model"), "12 inputs, 'Model'"),
        ([field.label for field in FIELDS_14[2:]], "Team Name and CONC"),
    ],
    ids=["twice", "unknown of 12", "no team"],
)
def test_labels_that_cannot_be_filled(labels: tuple[str, ...], message: str) -> None:
    """The message names the labels concerned."""
    with pytest.raises(SchemaError) as caught:
        match_labels(labels)
    assert message in str(caught.value)


def test_unknown_label_is_filled_by_place_if_accepted() -> None:
    """Only among 11 or 14 inputs, whose order is known; the schema lists such labels."""
    assert match_labels((*GUIDE[:10], "Wortperplexität")).unknown == ("Wortperplexität",)
    assert match_labels((*GUIDE[:10], "Wortperplexität")).fields == FIELDS_11


# -- values ---------------------------------------------------------------------------------------------------


def entry_data(fields: dict[str, Any], labels: tuple[str, ...] = GUIDE) -> list[Any]:
    return match_labels(labels).row(values_of(Result.from_fields(fields), "Team"))


def test_values_keep_full_precision() -> None:
    """Every digit of the result is sent."""
    data = json.loads(json.dumps(entry_data(result_fields(16))))
    assert data[:4] == ["Team", 16, 15995.587654321, 1017.2612345678901]
    assert data[4:6] == [10407, 344.564]
    assert data[6:] == [15995.587654321 / 10407, 1017.2612345678901 / 344.564, 0.4485, 1.3646, 3.2522]


def test_payloads_of_the_predecessor(shared: Any) -> None:
    """Its 14 values in its order, except for the digits that it cut off."""
    b200 = json.loads((ROOT / "baselines" / "b200_nv1126.json").read_text())["rows"]
    for line in (shared / "golden" / "original_payloads.txt").read_text().splitlines():
        golden = json.loads(line)["data"]
        row = next(row for row in b200 if (row["isl"], row["osl"], row["conc"]) == (1024, 1024, golden[1]))
        fields = result_fields(golden[1]) | {
            "median_e2el_ms": 15979.6,
            "tput_per_gpu": 1017.26,
            "interactivity": 71.4286,
            "b200_baseline_nv1126": {
                "b200_median_e2e_1126": row["median_e2e_ms"],
                "b200_tput_pergpu_1126": row["tput_per_gpu"],
                "b200_median_intvty_1126": row["median_interactivity"],
            },
            "median_e2e_ratio_vs_b200_1126": 15979.6 / row["median_e2e_ms"],
            "tput_per_gpu_ratio_vs_b200_1126": 1017.26 / row["tput_per_gpu"],
            "interactivity_ratio_vs_b200_1126": 71.4286 / row["median_interactivity"],
        }
        schema = match_labels([field.label for field in FIELDS_14])
        data = schema.row(values_of(Result.from_fields(fields), "MyTeam"))
        assert data[0] == golden[0]
        assert data[1:] == pytest.approx(golden[1:], rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1.0], ids=repr)
def test_only_finite_numbers_are_sent(value: float) -> None:
    """Gradio itself would accept and store anything."""
    with pytest.raises(EntryError, match=r"word_perplexity is .*, not a finite number"):
        entry_data(result_fields(accuracy={"bits_per_byte": 0.4, "byte_perplexity": 1.3, "word_perplexity": value}))


def test_missing_baseline_is_empty_only_where_that_is_allowed() -> None:
    """An optional input stays empty; a missing value for any other input is an error."""
    fields = {name: value for name, value in result_fields().items() if "b200" not in name}
    with pytest.raises(EntryError, match=r"B200 E2E "):
        entry_data(fields)
    optional = tuple(label + IF_KNOWN if "B200" in label or "Ratio" in label else label for label in GUIDE)
    assert entry_data(fields, optional)[4:8] == [None] * 4


def test_key_is_of_the_row_and_the_leaderboard() -> None:
    """Same figures, same leaderboard: same key. Anything else has another key."""
    one, again, other = (values_of(Result.from_fields(result_fields(conc)), "Team") for conc in (4, 4, 8))
    assert key_of(one, "http://a") == key_of(again, "http://a")
    assert len({key_of(one, "http://a"), key_of(one, "http://b"), key_of(other, "http://a")}) == 3


# -- what may be sent -----------------------------------------------------------------------------------------


def reasons(loopback: bool = False, **changed: Any) -> tuple[str, ...]:
    return tuple(own_objections(Result.from_fields(result_fields(**changed)), loopback))


def test_passed_result_of_a_server_may_be_sent() -> None:
    """There is no objection."""
    assert reasons() == ()
    assert reasons(engine="sglang") == ()


def test_reference_engine_stays_on_the_machine() -> None:
    """As a rehearsal it may go to a leaderboard on loopback."""
    assert "reference engine" in reasons(engine="reference")[0]
    assert reasons(engine="reference", loopback=True) == ()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"engine": "vllm"}, "'vllm'"),
        ({"accuracy_validation": {"status": "NOT RUN"}}, "accuracy is NOT RUN"),
        ({"accuracy_validation": {"status": "NO BASELINE"}}, "accuracy is NO BASELINE"),
        ({"accuracy_task": {"task": "wikitext-2047-chunks[:2]"}}, "wikitext-2047-chunks[:2] (--accuracy-limit)"),
        ({"successful_requests": 199}, "199 of 200 requests"),
        ({"validation": {"findings": [{"check": "h2", "severity": "reject", "message": "no"}]}}, "h2: no"),
        ({"server": {"num_gpus": None}}, "--tp"),
        ({"verdict": {"status": "FAILED", "reason": "slow"}}, ": slow"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_everything_else_is_refused_with_the_reason(changed: dict[str, Any], reason: str) -> None:
    """The first reason is the one that the user sees."""
    assert reason in reasons(**changed)[0]


def test_warnings_and_assumed_gpus_are_sent() -> None:
    """The result marks them, and they are no objection."""
    warned = {"findings": [{"check": "h7", "severity": "warn", "message": "assumed"}]}
    assert reasons(validation=warned, server={"num_gpus": 8, "num_gpus_source": "assumed"}) == ()
