"""Prompts rendered to HTTP/1.1 requests, so that sending one is a single system call and copies nothing.

Prompts are runs of consecutive ids, so all of them are slices of one text, "0,1,2,…": a request is three buffers (head,
slice, tail) for a gathering write. A sweep's requests take memory for the vocabulary once, not for each prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from urllib.parse import urlsplit

from pytest_dsr1.load.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go.

    :param host: Name or address, as a resolver takes it.
    :param authority: Host and port as the Host header names them.
    :param path: Of the completions endpoint.
    :param tls: Whether the connection is encrypted.
    """

    host: str
    port: int
    authority: str
    path: str
    tls: bool

    @classmethod
    def from_url(cls, url: str) -> Target:
        """The completions endpoint of the server at `url`, given without `/v1`.

        :raises ValueError: if it is not an http or https URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not the URL of a server; it should look like http://127.0.0.1:8888")
        tls = parts.scheme == "https"
        authority = parts.netloc.rpartition("@")[2]
        path = f"{parts.path.rstrip('/')}/v1/completions"
        return cls(parts.hostname, parts.port or (443 if tls else 80), authority, path, tls)


@dataclass(frozen=True, slots=True)
class Request:
    """One request, ready to be written.

    :param buffers: The bytes of it, in order.
    """

    buffers: tuple[bytes | memoryview, ...]
    input_tokens: int
    output_tokens: int


def render(target: Target, model: str, vocab_size: int, prompts: Iterable[Prompt]) -> tuple[Request, ...]:
    """The requests that ask `model` to continue each of `prompts`, greedily and to the full length."""
    prompts = tuple(prompts)
    longest = max((prompt.input_tokens for prompt in prompts), default=0)
    ids = _ConsecutiveIds(vocab_size, longest)
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: {target.authority}\r\nAccept: text/event-stream\r\n"
        "User-Agent: pytest-dsr1\r\nContent-Type: application/json\r\nContent-Length: "
    ).encode()
    opening = f'{{"model":{json.dumps(model)},"prompt":['.encode()
    tails = {
        tokens: (
            f'],"max_tokens":{tokens},"temperature":0,"ignore_eos":true,"stream":true,'
            '"stream_options":{"include_usage":true}}'
        ).encode()
        for tokens in {prompt.output_tokens for prompt in prompts}
    }
    requests = []
    for prompt in prompts:
        run = ids.run(prompt.second, prompt.input_tokens - 1)
        first = b"%d," % prompt.first if len(run) else b"%d" % prompt.first
        tail = tails[prompt.output_tokens]
        size = len(opening) + len(first) + len(run) + len(tail)
        buffers = (b"%b%d\r\n\r\n%b%b" % (head, size, opening, first), run, tail)
        requests.append(Request(buffers, prompt.input_tokens, prompt.output_tokens))
    return tuple(requests)


class _ConsecutiveIds:
    """The text "0,1,…,V-1,0,1,…" with the place of each number, long enough for any run up to `longest`."""

    def __init__(self, vocab_size: int, longest: int) -> None:
        numbers: Sequence[bytes] = [b"%d" % (i % vocab_size) for i in range(vocab_size + longest)]
        self._places = list(accumulate((len(number) + 1 for number in numbers), initial=0))
        self._text = memoryview(b",".join(numbers))

    def run(self, start: int, count: int) -> memoryview:
        """`count` ids from `start` on, separated by commas; no bytes for none."""
        return self._text[self._places[start] : max(self._places[start], self._places[start + count] - 1)]
