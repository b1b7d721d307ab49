"""A Gradio app with the endpoint of the competition's Spaces.

Written for Gradio 6. On Gradio 5 the endpoint and the tables work, but the plot does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import fastapi
import gradio as gr
import pandas as pd

from pytest_dsr1.core.config import Scenario
from pytest_dsr1.leaderboard.scoring import Placed, place, standings
from pytest_dsr1.leaderboard.store import OPTIONAL, Store, row_problem
from pytest_dsr1.submit.schema import API_NAME, IF_KNOWN, Field

_NOTHING = "\N{EN DASH}"
_SCORE = (
    "Score at one concurrency: 0.5 · throughput / best + 0.3 · interactivity / best + 0.2 · best E2E / E2E; a team's "
    "best row counts. The best score gets 1000 points, and each further rank 100 fewer. A team's total is the sum of "
    "its points at all concurrencies."
)


def make_app(store: Store, scenarios: Sequence[Scenario], fields: Sequence[Field]) -> fastapi.FastAPI:
    """One leaderboard at /, or one for each of several scenarios at /isl<ISL>osl<OSL>."""
    app = fastapi.FastAPI()
    for scenario in scenarios:
        path = "/" if len(scenarios) == 1 else f"/isl{scenario.isl}osl{scenario.osl}"
        # show_error: the handler's errors are written for the sender, who would otherwise not learn the reason.
        app = gr.mount_gradio_app(app, make_blocks(store, scenario, fields), path=path, show_error=True)
    return app


def make_blocks(store: Store, scenario: Scenario, fields: Sequence[Field]) -> gr.Blocks:
    """The page of one scenario, and its endpoint."""
    title = f"DeepSeek-R1 serving, ISL {scenario.isl}, OSL {scenario.osl}"

    def board() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        placed = place(store.rows(scenario))
        return totals_table(placed), rows_table(placed), curve(placed)

    # No telemetry: nothing leaves the machine.
    blocks: gr.Blocks = gr.Blocks(title=title, analytics_enabled=False)
    with blocks:
        gr.Markdown(f"# {title}\n{_SCORE}")
        totals = gr.Dataframe(label="Teams", interactive=False, wrap=True)
        plot = gr.LinePlot(
            x="Median E2E (ms)",
            y="Throughput per GPU (tokens/s)",
            color="Team",
            title="Throughput over latency: up and to the left is better",
            x_lim=[0, None],
            y_lim=[0, None],
            tooltip="all",
            height=420,
        )
        label = "Best row of each team at each concurrency"
        rows = gr.Dataframe(label=label, interactive=False, wrap=True, max_height=2000)
        with gr.Accordion("Submit by hand", open=False):
            inputs = [_input(field) for field in fields]
            answer = gr.Textbox(label="Answer", interactive=False)
            gr.Button("Submit").click(
                _handler(store, scenario, fields, board),
                inputs,
                [answer, totals, rows, plot],
                api_name=API_NAME,
            )
        blocks.load(board, None, [totals, rows, plot], queue=False, **_private())
        gr.Timer(30).tick(board, None, [totals, rows, plot], queue=False, **_private())
    return blocks


def _private() -> dict[str, Any]:
    """Keeps an event out of the API. Gradio 6 has another name for it than Gradio 5."""
    return {"api_visibility": "private"} if int(gr.__version__.split(".")[0]) >= 6 else {"api_name": False}


def _input(field: Field) -> Any:
    label = field.label + (IF_KNOWN if field in OPTIONAL else "")
    return gr.Textbox(label=label) if field is Field.TEAM else gr.Number(label=label, value=None)


def _handler(
    store: Store,
    scenario: Scenario,
    fields: Sequence[Field],
    board: Callable[[], tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]],
) -> Callable[..., tuple[Any, ...]]:
    def submit(*values: object) -> tuple[Any, ...]:
        row = dict(zip(fields, values, strict=True))
        if problem := row_problem(row):
            raise gr.Error(problem)
        number, new = store.add(scenario, row)
        return (f"row {number}" if new else f"row {number}, which was stored before"), *board()

    return submit


def totals_table(placed: dict[int, list[Placed]]) -> pd.DataFrame:
    """One line for each team, best first, with its points at each concurrency."""
    concs = list(placed)
    table = [
        [one.rank, one.team, one.points, *(one.by_conc.get(conc, _NOTHING) for conc in concs)]
        for one in standings(placed)
    ]
    return pd.DataFrame(table, columns=["Rank", "Team", "Points", *(f"CONC {conc}" for conc in concs)])


def rows_table(placed: dict[int, list[Placed]]) -> pd.DataFrame:
    """The rows that count, by concurrency, best first."""
    table = [
        [
            conc,
            one.rank,
            one.row.team,
            one.points,
            f"{one.score:.4f}",
            f"{one.row.throughput:,.2f}",
            f"{one.row.e2e_ms:,.1f}",
            _NOTHING if one.row.interactivity is None else f"{one.row.interactivity:.2f}",
        ]
        for conc, entries in placed.items()
        for one in entries
    ]
    columns = ["CONC", "Rank", "Team", "Points", "Score", "Throughput per GPU (tokens/s)", "Median E2E (ms)"]
    return pd.DataFrame(table, columns=[*columns, "Interactivity (tokens/s/user)"])


def curve(placed: dict[int, list[Placed]]) -> pd.DataFrame:
    """The points of the plot: throughput over latency."""
    table = [
        [one.row.team, conc, one.row.e2e_ms, one.row.throughput] for conc, entries in placed.items() for one in entries
    ]
    return pd.DataFrame(table, columns=["Team", "CONC", "Median E2E (ms)", "Throughput per GPU (tokens/s)"])
