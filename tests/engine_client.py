"""Calls to a running engine, as its tests make them."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

#: For everything that another process must come to; never reached where all is well.
DEADLINE_S = 30.0


def post(url: str, path: str = "/v1/completions", **body: Any) -> requests.Response:
    return requests.post(url + path, json=body, timeout=DEADLINE_S)


def complete(url: str, **body: Any) -> dict[str, Any]:
    """A completion at temperature 0."""
    reply = post(url, **{"temperature": 0, "ignore_eos": True} | body)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def events(url: str, **body: Any) -> list[dict[str, Any]]:
    """A stream's events, up to its end mark."""
    reply = post(url, **{"temperature": 0, "ignore_eos": True, "stream": True} | body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    blocks = reply.content.decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until another process has come to it."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        select.select([], [], [], 0.01)


def metric(url: str, name: str) -> float:
    lines = requests.get(f"{url}/metrics", timeout=DEADLINE_S).text.splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"dsr1:{name}{{"))


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
