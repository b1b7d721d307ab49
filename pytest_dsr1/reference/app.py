"""The embedded engine's HTTP server, with the endpoints of SGLang that sweeps use."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import orjson
from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from pytest_dsr1.reference.completions import ApiError, CompletionRequest, decode_body, parse_request
from pytest_dsr1.reference.model import PREFILL_TOKENS, Model
from pytest_dsr1.reference.responses import Response
from pytest_dsr1.reference.scheduler import Scheduler
from pytest_dsr1.reference.text import Vocabulary

#: Name of the engine and of its model.
NAME = "pytest-dsr1-reference"
#: Largest body of a request: several times the ids of the longest context as JSON.
MAX_BODY_BYTES = 64 << 20


@cache
def package_version() -> str:
    """Version of the installed package; `unknown` in a checkout that is not installed."""
    try:
        return metadata.version("pytest-dsr1")
    except metadata.PackageNotFoundError:
        return "unknown"


@dataclass
class InferenceEngine:
    """A loaded model with its scheduler, in one event loop and one thread.

    :param folder: The folder that model and tokenizer were read from.
    :param context_length: Largest number of tokens of prompt and output together.
    :ivar started: Unix time of the start.
    :ivar requests: Number of completion requests accepted.
    """

    folder: Path
    model: Model
    vocabulary: Vocabulary
    scheduler: Scheduler
    context_length: int
    started: float = field(default_factory=time.time)
    requests: int = 0
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def load(cls, folder: Path, *, max_running: int = 128, context_length: int | None = None) -> InferenceEngine:
        """Load a model from a Hugging Face folder.

        :param max_running: Largest number of sequences decoded at a time.
        :param context_length: At most the model's own context length, which is the default.
        :raises CheckpointError: if the folder has no usable model.
        """
        model = Model.load(folder)
        return cls(
            folder=folder,
            model=model,
            vocabulary=Vocabulary.load(folder, model.config.vocab_size),
            scheduler=Scheduler(model, max_running=max_running),
            context_length=min(context_length or model.config.context_length, model.config.context_length),
        )

    async def run(self) -> None:
        """Run forward passes forever; the loop reads and writes between two passes."""
        while True:
            if not self.scheduler.busy:
                self._wake.clear()
                await self._wake.wait()
            self.scheduler.step()
            await asyncio.sleep(0)

    async def complete(self, response: Response) -> None:
        """Run the sequences of a response to their end.

        If the task is cancelled, because the client has disconnected, the sequences are stopped.
        """
        self.requests += 1
        for sequence in response.sequences:
            self.scheduler.add(sequence)
        self._wake.set()
        try:
            await response.done.wait()
        finally:
            if not response.done.is_set():
                for sequence in response.sequences:
                    self.scheduler.cancel(sequence)

    def parse(self, body: bytes) -> CompletionRequest:
        """Validate the body of a completion request.

        :raises ApiError: if it cannot be served.
        """
        return parse_request(body, self.vocabulary, self.model.config.vocab_size, self.context_length, NAME)

    def describe(self) -> dict[str, Any]:
        """The answer of /server_info."""
        return {
            "engine": NAME,
            "version": package_version(),
            "served_model_name": NAME,
            "model_path": str(self.folder),
            "tokenizer_path": str(self.folder),
            "vocab_size": self.model.config.vocab_size,
            "context_length": self.context_length,
            "max_model_len": self.context_length,
            "dtype": "float32",
            "tp_size": 1,
            "pp_size": 1,
            "dp_size": 1,
            "disable_radix_cache": True,
            "chunked_prefill_size": PREFILL_TOKENS,
            "max_running_requests": self.scheduler.max_running,
            "process_start_time": self.started,
        }

    def metrics(self) -> str:
        """The answer of /metrics, in the text format of Prometheus."""
        rows = [
            ("num_running_reqs", "gauge", "Sequences that hold a slot.", self.scheduler.num_running),
            ("num_queue_reqs", "gauge", "Sequences that wait for a slot.", self.scheduler.num_waiting),
            ("num_requests_total", "counter", "Completion requests accepted.", self.requests),
            ("prompt_tokens_total", "counter", "Prompt tokens computed.", self.scheduler.prompt_tokens),
            ("generation_tokens_total", "counter", "Tokens generated.", self.scheduler.generated_tokens),
        ]
        return "".join(
            f'# HELP dsr1:{name} {text}\n# TYPE dsr1:{name} {kind}\ndsr1:{name}{{model_name="{NAME}"}} {value}\n'
            for name, kind, text, value in rows
        )


ENGINE = web.AppKey("engine", InferenceEngine)


def make_app(engine: InferenceEngine) -> web.Application:
    """Make the web application. Completions need `engine.run` in a task of their own."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors])
    app[ENGINE] = engine
    app.add_routes(
        [
            web.post("/v1/completions", _completions),
            web.get("/v1/models", _models),
            web.get("/health", _health),
            web.get("/health_generate", _health_generate),
            web.get("/server_info", _server_info),
            web.get("/get_server_info", _server_info),
            web.get("/model_info", _model_info),
            web.get("/get_model_info", _model_info),
            web.post("/tokenize", _tokenize),
            web.get("/flush_cache", _flush_cache),
            web.post("/flush_cache", _flush_cache),
            web.get("/metrics", _metrics),
        ]
    )
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return _json_bytes(error.body(), error.status)
    except (HttpProcessingError, web.RequestPayloadError) as error:  # for example a damaged gzip body
        return _json_bytes(ApiError(f"Unreadable request body: {' '.join(str(error).split())}").body(), 400)
    except web.HTTPClientError as error:  # aiohttp's own: no such path, wrong method, body too large
        return _json_bytes(ApiError(error.reason, error.status).body(), error.status)


def _json_bytes(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


def _json(value: object) -> web.Response:
    return _json_bytes(orjson.dumps(value))


async def _completions(request: web.Request) -> web.StreamResponse:
    engine = request.app[ENGINE]
    asked = engine.parse(await request.read())
    if asked.stream:
        return await _stream(request, engine, asked)
    response = Response(asked, engine.vocabulary, engine.model.config.eos_token_ids)
    await engine.complete(response)
    return _json_bytes(response.body())


async def _stream(request: web.Request, engine: InferenceEngine, asked: CompletionRequest) -> web.StreamResponse:
    """Write the event of each token at once, directly to the transport.

    With aiohttp's own writer each event costs a coroutine and two more copies. With one event per token, that is a
    large part of the server's time outside the model.
    """
    reply = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    writer, transport = await reply.prepare(request), request.transport
    if writer is None or transport is None:
        raise ConnectionResetError("the client has disconnected")
    writer.send_headers()
    send, gone = transport.write, transport.is_closing
    chunked = request.version >= HttpVersion11

    def write(event: bytes) -> None:
        # After a client disconnects, a few more tokens may be generated before this handler is cancelled.
        if not gone():
            send(b"%x\r\n%b\r\n" % (len(event), event) if chunked else event)

    response = Response(asked, engine.vocabulary, engine.model.config.eos_token_ids, write)
    await engine.complete(response)
    await reply.write_eof(response.closing_events())
    return reply


async def _models(request: web.Request) -> web.Response:
    engine = request.app[ENGINE]
    model = {
        "id": NAME,
        "object": "model",
        "created": int(engine.started),
        "owned_by": "pytest-dsr1",
        "root": NAME,
        "parent": None,
        "max_model_len": engine.context_length,
    }
    return _json({"object": "list", "data": [model]})


async def _health(_: web.Request) -> web.Response:
    return web.Response()


async def _health_generate(request: web.Request) -> web.Response:
    """Generate one token to show that the engine works."""
    engine = request.app[ENGINE]
    asked = engine.parse(b'{"prompt":[0],"max_tokens":1,"temperature":0,"ignore_eos":true}')
    await engine.complete(Response(asked, engine.vocabulary, frozenset()))
    return web.Response()


async def _server_info(request: web.Request) -> web.Response:
    return _json(request.app[ENGINE].describe())


async def _model_info(request: web.Request) -> web.Response:
    engine = request.app[ENGINE]
    return _json(
        {"model_path": str(engine.folder), "tokenizer_path": str(engine.folder), "is_generation": True, "engine": NAME}
    )


class _TokenizeFields(msgspec.Struct):
    prompt: str | list[str]
    add_special_tokens: bool = True


async def _tokenize(request: web.Request) -> web.Response:
    engine = request.app[ENGINE]
    asked = decode_body(await request.read(), _TokenizeFields)
    several = isinstance(asked.prompt, list)
    texts = asked.prompt if isinstance(asked.prompt, list) else [asked.prompt]
    tokens = [engine.vocabulary.encode(text, add_special_tokens=asked.add_special_tokens) for text in texts]
    counts = [len(ids) for ids in tokens]
    return _json(
        {
            "tokens": tokens if several else tokens[0],
            "count": counts if several else counts[0],
            "max_model_len": engine.context_length,
        }
    )


async def _flush_cache(request: web.Request) -> web.Response:
    """Succeed unless the engine is busy, as SGLang does; there is no prefix cache."""
    if request.app[ENGINE].scheduler.busy:
        return web.Response(text="Flush cache failed.\n", status=400)
    return web.Response(text="Cache flushed.\n")


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(text=request.app[ENGINE].metrics(), content_type="text/plain", charset="utf-8")
