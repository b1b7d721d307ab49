"""Prompts rendered to HTTP/1.1 requests before the measured window.

Sending a request is one system call and copies nothing. Prompts are runs of consecutive ids, so every prompt is a slice
of one text, "0,1,2,…". A request is three buffers (head, slice, tail) for one gathering write (`writev`). All requests
share the memory of that one text.
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
    """The endpoint that requests are sent to.

    :param host: Host name or address, as a resolver takes it.
    :param authority: Host and port as the Host header has them.
    :param path: Path of the completions endpoint.
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

    :param buffers: The bytes of the request, in order.
    :param input_tokens: Length of its prompt.
    :param output_tokens: Tokens that it asks for.
    """

    buffers: tuple[bytes | memoryview, ...]
    input_tokens: int
    output_tokens: int


def render_requests(target: Target, model: str, vocab_size: int, prompts: Iterable[Prompt]) -> tuple[Request, ...]:
    """Render one request per prompt: greedy, streamed, to the full output length.

    :param model: Name of the served model.
    """
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
    """The text "0,1,…,V-1,0,1,…" with the offset of each number.

    :param longest: The text is long enough for any run of up to so many ids.
    """

    def __init__(self, vocab_size: int, longest: int) -> None:
        numbers: Sequence[bytes] = [b"%d" % (i % vocab_size) for i in range(vocab_size + longest)]
        self._places = list(accumulate((len(number) + 1 for number in numbers), initial=0))
        self._text = memoryview(b",".join(numbers))

    def run(self, start: int, count: int) -> memoryview:
        """The text of `count` ids from `start` on, with commas; empty if `count` is 0."""
        return self._text[self._places[start] : max(self._places[start], self._places[start + count] - 1)]
