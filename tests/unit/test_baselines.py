"""The B200 table is data that is looked up, compared with and audited, never corrected."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dsr1.core.baselines import B200Row, B200Table, compare
from pytest_dsr1.core.config import ALL_SCENARIOS, CONCURRENCIES, Point, Scenario

TEXT = (Path(__file__).parents[2] / "baselines" / "b200_nv1126.json").read_text(encoding="utf-8")
TABLE = B200Table.from_json(TEXT, name="b200_nv1126.json")

#: GPUs that each row implies, as worked out by hand from Little's law, in the order of the table.
GPUS_IMPLIED = (8.18, 6.44, 8.22, 8.21, 8.19, 8.34, 8.22, 8.22, 8.55, 8.25, 8.33, 8.16, 8.24, 8.23, 4.12)


def point(isl: int, osl: int, conc: int) -> Point:
    """Short for a configuration."""
    return Point(Scenario(isl, osl), conc)


def altered(**changes: Any) -> str:
    """The table with its first row changed."""
    document = json.loads(TEXT)
    document["rows"][0] |= changes
    return json.dumps(document)


class TestTable:
    """What was published, by configuration."""

    def test_all_fifteen_configurations_have_a_row(self) -> None:
        """Three scenarios at five concurrencies, and nothing else."""
        expected = [Point(scenario, conc) for scenario in ALL_SCENARIOS for conc in CONCURRENCIES]
        assert [row.point for row in TABLE.rows] == expected

    def test_a_row_is_found_by_its_configuration(self) -> None:
        """Figures are as published."""
        row = TABLE.row(point(8192, 1024, 32))
        assert row is not None
        assert (row.median_e2e_ms, row.median_interactivity, row.tput_per_gpu) == (18146, 51.698, 1776.218)

    @pytest.mark.parametrize("unknown", [point(128, 128, 4), point(1024, 1024, 5), point(8192, 8192, 4)], ids=str)
    def test_elsewhere_nothing_was_published(self, unknown: Point) -> None:
        """Not an error: such a result has no ratios."""
        assert TABLE.row(unknown) is None


class TestCompare:
    """Exact quotients, under the names of the original's result file."""

    def test_the_golden_result_comes_out_to_the_last_digit(self, shared: Path) -> None:
        """Keys, nesting, order, integers that stay integers, and full precision."""
        golden = json.loads((shared / "golden" / "result_isl1024_osl1024_conc16.json").read_text())
        row = TABLE.row(point(1024, 1024, 16))
        assert row is not None
        comparison = compare(golden, row)
        comparison = msgspec.to_builtins(comparison)
        assert json.dumps(comparison) == json.dumps({key: golden[key] for key in golden if key in comparison})
        assert len(comparison) == 4

    def test_a_figure_that_is_unknown_has_no_ratio(self) -> None:
        """Without a number of GPUs there is no throughput per GPU to compare; the rest is compared."""
        row = TABLE.row(point(1024, 1024, 16))
        assert row is not None
        comparison = compare({"median_e2el_ms": 20814.0}, row)
        assert comparison["median_e2e_ratio_vs_b200_1126"] == 2.0
        assert comparison.keys() == {"b200_baseline_nv1126", "median_e2e_ratio_vs_b200_1126"}


def gpus_implied(row: B200Row, range_ratio: float) -> float:
    """The number of GPUs that fits latency and throughput, if both are of one run (Little's law).

    CONC requests of (ISL + OSL) * (1 + r) / 2 tokens each, the mean of lengths drawn from r * L to L, complete in one
    E2E. That throughput, divided by the one per GPU, is the number of GPUs.
    """
    tokens_in_flight = row.conc * (row.isl + row.osl) * (1 + range_ratio) / 2
    return tokens_in_flight / (row.median_e2e_ms / 1000.0) / row.tput_per_gpu


def decode_share(row: B200Row, range_ratio: float) -> float:
    """The part of E2E that decoding takes at this interactivity; below 1 if both are of one run."""
    decode_s = (row.osl * (1 + range_ratio) / 2 - 1) / row.median_interactivity
    return decode_s / (row.median_e2e_ms / 1000.0)


def is_consistent(row: B200Row) -> bool:
    """Whether a row fits its table's number of GPUs within 10 %, and decoding fits into its E2E.

    Consistent rows imply a number of GPUs within 7 % of the published one. Medians of two quantities need not add up
    exactly: in consistent rows decoding takes up to 1.024 of the E2E.
    """
    gpus = gpus_implied(row, TABLE.range_ratio)
    return abs(gpus / TABLE.gpus - 1) <= 0.10 and decode_share(row, TABLE.range_ratio) <= 1.05


class TestAudit:
    """The contradictions within published rows, which their remarks describe."""

    def test_gpus_implied_by_littles_law(self) -> None:
        """CONC * 0.9 * (ISL + OSL) / E2E over the throughput per GPU."""
        implied = [gpus_implied(row, TABLE.range_ratio) for row in TABLE.rows]
        assert implied == pytest.approx(GPUS_IMPLIED, abs=0.006)

    def test_exactly_the_inconsistent_rows_have_a_remark(self) -> None:
        """The remarks in the data are what the arithmetic finds, no more and no less."""
        assert [row.point for row in TABLE.rows if not is_consistent(row)] == [
            row.point for row in TABLE.rows if row.remark
        ]

    def test_two_rows_have_the_interactivity_of_another_run(self) -> None:
        """At that pace decoding alone takes longer than the whole E2E."""
        shares = {row.point: decode_share(row, TABLE.range_ratio) for row in TABLE.rows}
        assert [one for one, share in shares.items() if share > 1.05] == [point(1024, 1024, 16), point(1024, 8192, 16)]

    def test_a_corrected_row_is_consistent(self) -> None:
        """217.064 instead of 271.064 implies 8.04 GPUs: two digits changed places."""
        document = json.loads(TEXT)
        document["rows"][1]["tput_per_gpu"] = 217.064
        assert is_consistent(B200Table.from_json(json.dumps(document)).rows[1])
        assert not is_consistent(TABLE.rows[1])


class TestValidation:
    """A file that is wrong is refused with file, row and field."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"median_e2e_ms": 0}, "t.json, row 1, median_e2e_ms: expected int >= 1, found 0"),
            ({"median_e2e_ms": -0.5}, "row 1, median_e2e_ms: expected float > 0.0, found -0.5"),
            ({"tput_per_gpu": "131"}, "row 1, tput_per_gpu: expected .*, found '131'"),
            ({"tput_per_gpu": True}, "row 1, tput_per_gpu: expected .*, found true"),
            ({"tput_per_gpu": float("nan")}, "row 1, tput_per_gpu: expected .*, found nan"),
            ({"median_interactivity": 10**400}, "row 1, median_interactivity: expected .*, found a very large number"),
            ({"isl": 10.5}, "row 1, isl: expected int, found 10.5"),
            ({"remark": None}, "row 1, remark: expected str, found null"),
            ({"remarks": ""}, "row 1: has the unknown field remarks"),
            ({"conc": 8}, "t.json: two rows for isl1024-osl1024-conc8"),
        ],
    )
    def test_a_wrong_row(self, changes: dict[str, Any], message: str) -> None:
        """The message is enough to find and repair it."""
        with pytest.raises(ValueError, match=message):
            B200Table.from_json(altered(**changes), name="t.json")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "t.json: not JSON"),
            ("[" * 100_000, "t.json: not JSON"),
            ("[]", "t.json: expected object, found a list"),
            ('{"rows": []}', "t.json, rows: expected .* length >= 1|t.json: lacks the field name"),
            (TEXT.replace('"range_ratio": 0.8', '"range_ratio": 1.2'), "t.json, range_ratio: .* <= 1.0, found 1.2"),
            (TEXT.replace('"gpus": 8', '"gpus": 0'), "t.json, gpus: expected int >= 1, found 0"),
            (json.dumps(json.loads(TEXT) | {"rows": []}), "t.json, rows: expected array of length >= 1, found a list"),
            (json.dumps(json.loads(TEXT) | {"source": ""}), "t.json, source: .* length >= 1, found ''"),
        ],
        ids=lambda value: value[:30],
    )
    def test_a_wrong_file(self, text: str, message: str) -> None:
        """Likewise for what stands above the rows."""
        with pytest.raises(ValueError, match=message):
            B200Table.from_json(text, name="t.json")

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["name", "source", "gpus", "rows", "isl", "osl", "conc"]), inner)
            ),
        )
    )
    def test_garbage_is_refused_in_one_way(self, garbage: Any) -> None:
        """Nothing but a ValueError leaves the parser, whatever one value is replaced by."""
        with pytest.raises(ValueError, match="B200 table"):
            B200Table.from_json(json.dumps(garbage))
        # A valid value by chance is no error; any other exception fails the test.
        for key in ("gpus", "rows", "range_ratio", "name"):
            with contextlib.suppress(ValueError):
                B200Table.from_json(json.dumps(json.loads(TEXT) | {key: garbage}))
