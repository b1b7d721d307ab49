"""What a sweep says on the terminal: before it begins what will be measured, at its end what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_dsr1.core.config import Mode, SweepConfig
from pytest_dsr1.core.result import Result
from pytest_dsr1.core.server import Served
from pytest_dsr1.core.summary import Batch, Status


def header_lines(
    config: SweepConfig, why: str, served: Served | None, folders: Sequence[Path], rootdir: str
) -> list[str]:
    """What will be measured, on what, and how much that is."""
    points = config.points
    lengths = "; ".join(f"ISL {scenario.isl}, OSL {scenario.osl}" for scenario in config.scenarios)
    what = {
        Mode.ACC: "accuracy only",
        Mode.PERF: "accuracy gate, then performance" if config.accuracy else "performance only (accuracy off)",
        Mode.SUBMIT: "accuracy gate, performance, submission",
    }[config.mode]
    lines = [f"dsr1: {lengths}, CONC {', '.join(map(str, config.concurrencies))}: {what}"]
    if why:
        lines.append(f"dsr1: served by {why}")
    if served is not None:
        gpus = {"server": "", "assumed": ", assumed from --tp", "unknown": ""}[served.num_gpus_source]
        count = f"{served.num_gpus} GPUs{gpus}" if served.num_gpus else "number of GPUs unknown: no per-GPU figures"
        lines.append(f"dsr1: model {served.model} ({count})")
    if config.mode is not Mode.ACC:
        requests = sum(config.num_prompts_at(point) for point in points)
        warmups = sum(config.num_warmups_at(point) for point in points)
        tokens = [
            sum(config.num_prompts_at(point) * length for point, length in zip(points, lengths_, strict=True))
            for lengths_ in ([point.isl for point in points], [point.osl for point in points])
        ]
        upto = "up to " if config.random_range_ratio < 1 else ""
        lines.append(
            f"dsr1: {requests:,} requests (and {warmups:,} to warm up), {upto}{tokens[0]:,} tokens in, "
            f"{upto}{tokens[1]:,} out; prompt seed {config.prompt_seed}"
        )
    for folder in folders:
        shown = folder.relative_to(rootdir) if folder.is_relative_to(rootdir) else folder
        lines.append(f"dsr1: results in {shown}")
    return lines


_COLUMNS = (
    ("CONC", "{:>5}"),
    ("result", "{:<11}"),
    ("tokens/s", "{:>10}"),
    ("out tok/s", "{:>10}"),
    ("/GPU", "{:>9}"),
    ("TTFT ms", "{:>9}"),
    ("TPOT ms", "{:>8}"),
    ("E2E ms", "{:>10}"),
    ("tok/s/user", "{:>11}"),
    ("vs B200 /GPU", "{:>13}"),
    ("vs B200 E2E", "{:>12}"),
    ("word ppl", "{:>9}"),
)


def closing_lines(batch: Batch, results: Mapping[int, Result | None], folder: str, again: str = "") -> list[str]:
    """A table of medians, the reasons of failures, and where everything lies.

    :param again: What is to be typed beside --resume.
    """
    lines = [f"ISL {batch.scenario.isl}, OSL {batch.scenario.osl} (latencies are medians)"]
    lines.append(" ".join(shape.format(name) for name, shape in _COLUMNS).rstrip())
    for state in batch.points:
        result = results.get(state.conc) if state.status is not Status.NOT_RUN else None
        cells = [str(state.conc), str(state.status), *_figures(result)]
        lines.append(" ".join(shape.format(cell) for cell, (_, shape) in zip(cells, _COLUMNS, strict=True)).rstrip())
    lines += [
        f"CONC {state.conc}: {state.reason}" for state in batch.points if state.status is Status.FAILED and state.reason
    ]
    for state in batch.points:
        result = results.get(state.conc)
        warnings = [one for one in result.findings if one.severity == "warn"] if result is not None else []
        lines += [f"CONC {state.conc}: warning {one.check}: {one.message}" for one in warnings]
    lines.append(f"{folder}/summary.txt: {batch.count(Status.PASSED)} of {len(batch.points)} passed")
    # What was not measured at all is begun anew, with other options perhaps.
    if any(state.finished for state in batch.points) and not all(state.finished for state in batch.points):
        lines.append(f"complete it with: pytest --resume {folder}{again}")
    return lines


def _figures(result: Result | None) -> list[str]:
    fields = result.fields if result is not None else {}

    def cell(name: str, shape: str, source: Mapping[str, object] = fields) -> str:
        value = source.get(name)
        return shape.format(value) if isinstance(value, int | float) else "-"

    return [
        cell("total_token_throughput", "{:,.1f}"),
        cell("output_throughput", "{:,.1f}"),
        cell("tput_per_gpu", "{:,.1f}"),
        cell("median_ttft_ms", "{:,.2f}"),
        cell("median_tpot_ms", "{:,.3f}"),
        cell("median_e2el_ms", "{:,.1f}"),
        cell("interactivity", "{:,.2f}"),
        cell("tput_per_gpu_ratio_vs_b200_1126", "{:.4f}"),
        cell("median_e2e_ratio_vs_b200_1126", "{:.4f}"),
        cell("word_perplexity", "{:.4f}", fields.get("accuracy", {})),
    ]
