"""Spaces as others write them: one app for each behaviour, on Gradio 5 or 6.

Prints its port. /ok and /fourteen keep rows; /boom and /boom_shown fail; /gr_error refuses; /full has a queue of one
and a handler that waits for GET /release; /locked wants a password. GET /rows lists what was kept.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import fastapi
import gradio as gr
import uvicorn

ELEVEN = (
    "Team Name",
    "CONC",
    "MI355X E2E (median) (ms)",
    "MI355X Throughput per GPU (tokens/s)",
    "B200 E2E (median) (ms)",
    "B200 Throughput per GPU (tokens/s)",
    "E2E Ratio (MI355X/B200)",
    "Throughput Ratio (MI355X/B200)",
    "bits_per_byte",
    "byte_perplexity",
    "word_perplexity",
)
FOURTEEN = (*ELEVEN[:8], "Interactivity", "B200 Interactivity", "Interactivity Ratio", *ELEVEN[8:])

rows: list[list[Any]] = []
released = threading.Event()


def keep(*values: Any) -> tuple[str, list[list[Any]]]:
    rows.append(list(values))
    return f"ok {values[0]}", [[values[0], values[1]]]


def boom(*_values: Any) -> tuple[str, list[list[Any]]]:
    raise RuntimeError("boom: the table is gone")


def refuse(*_values: Any) -> tuple[str, list[list[Any]]]:
    raise gr.Error("word_perplexity is too good")


def wait(*values: Any) -> tuple[str, list[list[Any]]]:
    released.wait(60)
    return keep(*values)


def space(handler: Callable[..., Any], labels: tuple[str, ...]) -> gr.Blocks:
    blocks: gr.Blocks = gr.Blocks(analytics_enabled=False)
    with blocks:
        inputs = [gr.Textbox(label=labels[0]), *(gr.Number(label=label) for label in labels[1:])]
        outputs = [gr.Textbox(), gr.Dataframe()]
        gr.Button().click(handler, inputs, outputs, api_name="submit_results", concurrency_limit=1)
    return blocks


def main() -> None:
    app = fastapi.FastAPI()

    @app.get("/rows")
    def _rows() -> list[list[Any]]:
        return rows

    @app.get("/release")
    def _release() -> None:
        released.set()

    spaces: dict[str, tuple[gr.Blocks, dict[str, Any]]] = {
        "/ok": (space(keep, ELEVEN), {}),
        "/fourteen": (space(keep, FOURTEEN), {}),
        "/boom": (space(boom, ELEVEN), {"show_error": False}),
        "/boom_shown": (space(boom, ELEVEN), {"show_error": True}),
        "/gr_error": (space(refuse, ELEVEN), {"show_error": True}),
        "/full": (space(wait, ELEVEN).queue(max_size=1), {}),
        "/locked": (space(keep, ELEVEN), {"auth": ("user", "password")}),
    }
    for path, (blocks, options) in spaces.items():
        app = gr.mount_gradio_app(app, blocks, path=path, **options)
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"port {listening.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])


if __name__ == "__main__":
    main()
