"""Batch folders as a finished sweep leaves them, without a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_dsr1.batch import result_path, write_atomically
from pytest_dsr1.batch.journal import Journal
from pytest_dsr1.core.config import Mode, Point, Scenario
from pytest_dsr1.core.result import SCHEMA_VERSION, Result
from pytest_dsr1.core.server import Served
from pytest_dsr1.core.summary import Status

SCENARIO = Scenario(1024, 1024)


def result_fields(conc: int = 4, **changed: Any) -> dict[str, Any]:
    """A passed result of an external server, as far as a leaderboard reads it.

    :param changed: Fields to replace; those of an object are replaced one by one.
    """
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "engine": "external",
        "written": 0.0,
        "successful_requests": 50 * conc,
        "benchmark_args": {
            "model": "model",
            "backend": "openai-completions",
            "base_url": "http://127.0.0.1:1",
            "dataset_name": "random",
            "random_input_len": SCENARIO.isl,
            "random_output_len": SCENARIO.osl,
            "random_range_ratio": 1.0,
            "num_prompts": 50 * conc,
            "num_prompts_source": "formula",
            "max_concurrency": conc,
            "request_rate": "inf",
            "num_warmups": 2 * conc,
            "seed": 0,
            "vocab_size": 1000,
            "vocab_source": "--vocab-size",
            "prompts_sha256": "",
        },
        "median_e2el_ms": 15979.587654321 + conc,
        "tput_per_gpu": 1017.2612345678901,
        "interactivity": 71.42857142857143,
        "b200_baseline_nv1126": {
            "b200_median_e2e_1126": 10407,
            "b200_tput_pergpu_1126": 344.564,
            "b200_median_intvty_1126": 83.567,
        },
        "median_e2e_ratio_vs_b200_1126": (15979.587654321 + conc) / 10407,
        "tput_per_gpu_ratio_vs_b200_1126": 1017.2612345678901 / 344.564,
        "interactivity_ratio_vs_b200_1126": 71.42857142857143 / 83.567,
        "accuracy": {"bits_per_byte": 0.4485, "byte_perplexity": 1.3646, "word_perplexity": 3.2522},
        "accuracy_validation": {"status": "PASSED"},
        "accuracy_task": {
            "task": "wikitext-2047-chunks",
            "documents": 1,
            "tokens": 1,
            "words": 1,
            "bytes": 1,
            "requests": 1,
            "concurrency": conc,
            "seconds": 1.0,
            "tokenizer": "model",
            "prefix_token_id": 0,
        },
        "server": Served(url="http://127.0.0.1:1", model="model", num_gpus=8, num_gpus_source="server").to_fields(),
        "validation": {"findings": []},
        "verdict": {"status": "PASSED", "reason": ""},
    }
    for name, value in changed.items():
        fields[name] = fields[name] | value if isinstance(value, dict) else value
    return fields


def finished_batch(reports: Path, url: str, concs: Sequence[int] = (4,), team: str = "Team", **changed: Any) -> Journal:
    """A batch of mode submit: all points passed, nothing was sent."""
    options = {"--isl": "1024", "--osl": "1024", "--submit-team": team, "--leaderboard-url": url}
    journal = Journal.create(reports, SCENARIO, Mode.SUBMIT, options)
    journal.select(dict.fromkeys(concs, ("test_accuracy", "test_perf")))
    for conc in concs:
        journal.start(conc)
        result = Result.from_fields(result_fields(conc, **changed))
        write_atomically(result_path(journal.folder, Point(SCENARIO, conc)), result.to_json())
        journal.end(conc, Status.PASSED)
    return journal
