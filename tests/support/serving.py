"""A real server on a real socket, run by the real loop thread, and ways to look inside."""

from __future__ import annotations

import json
import queue
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import httpx
import openai

from llmserve.core.clock import MonotonicClock
from llmserve.core.events import Event, EventBus
from llmserve.core.knobs import KnobBoard
from llmserve.engines import registry
from llmserve.engines.base import Engine, EngineInfo
from llmserve.entrypoints.http.app import build_app
from llmserve.entrypoints.http.cors import Origins
from llmserve.entrypoints.http.options import EndpointOptions
from llmserve.entrypoints.http.response_cache import CacheOptions
from llmserve.entrypoints.http.server import HttpServer, bind
from llmserve.observe import Telemetry
from llmserve.serving.api_keys import Keyring, KeyTerms, terms_of
from llmserve.serving.publisher import publish_step
from llmserve.serving.runtime import Runtime
from llmserve.serving.service import Service

KEY = "sk-test-4f1c"
PATIENCE_S = 60.0
"""How long a test waits for what must come; nothing is asserted of how soon it comes."""
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me a story about a lighthouse."}]

E = TypeVar("E", bound=Event)


class Tail:
    """Events as they come, each looked at once."""

    def __init__(self, bus: EventBus) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        bus.attach(self._events.put)
        self.close = partial(bus.detach, self._events.put)

    def wait(self, kind: type[E], test: Callable[[E], bool] = lambda event: True) -> E:
        """The next event of `kind` that passes; queue.Empty when none comes."""
        while True:
            event = self._events.get(timeout=PATIENCE_S)
            if isinstance(event, kind) and test(event):
                return event


@dataclass(frozen=True)
class Serving:
    service: Service
    telemetry: Telemetry
    runtime: Runtime
    server: HttpServer
    bus: EventBus

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def info(self) -> EngineInfo:
        return self.service.engine.info

    @property
    def model(self) -> str:
        return self.info.model_id

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.root}/v1", api_key=key, max_retries=0)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.root}/v1", api_key=KEY, max_retries=0)

    def http(self, key: str | None = KEY) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.root, headers=headers, timeout=PATIENCE_S)

    @contextmanager
    def knobs(self, **changes: object) -> Iterator[None]:
        before = self.service.board.current.as_dict()
        self.set(changes)
        try:
            yield
        finally:
            self.set(before)

    def set(self, changes: Mapping[str, object]) -> None:
        self.runtime.call(self.service.set_knobs(changes), PATIENCE_S)

    @contextmanager
    def tail(self) -> Iterator[Tail]:
        tail = Tail(self.bus)
        try:
            yield tail
        finally:
            tail.close()

    def post_and_hold(self, path: str, body: Mapping[str, object]) -> socket.socket:
        """Send a request and read nothing: closing the socket is a client that leaves."""
        raw = json.dumps(body).encode()
        sock = socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE_S)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        sock.sendall(head.encode() + raw)
        return sock

    def long_body(self, *, stream: bool) -> dict[str, object]:
        """A chat that goes on for as long as the context allows."""
        return {"messages": MESSAGES, "ignore_eos": True, "stream": stream}


@contextmanager
def serving(
    engine: str,
    *,
    key_terms: Mapping[str, KeyTerms] | None = None,
    cache: CacheOptions | None = None,
    origins: Origins = (),
    strict: bool = True,
    **options: object,
) -> Iterator[Serving]:
    clock, bus = MonotonicClock(), EventBus()
    telemetry = Telemetry(bus, clock)
    made: Engine = registry.create(engine, sink=partial(publish_step, bus), clock=clock, **options)
    service = Service(made, KnobBoard(), bus, clock, terms_of(key_terms or {}))
    app = build_app(
        service, telemetry, Keyring(KEY, key_terms or {}), EndpointOptions(cache, origins, strict)
    )
    server = HttpServer(app, bind("127.0.0.1", 0))
    with ExitStack() as stack:
        runtime = Runtime()
        stack.callback(runtime.close)
        stack.callback(lambda: runtime.call(server.stop(), PATIENCE_S))
        stack.callback(lambda: runtime.call(service.stop(), PATIENCE_S))
        runtime.call(service.start(), PATIENCE_S)
        runtime.call(server.start(), PATIENCE_S)
        yield Serving(service, telemetry, runtime, server, bus)


def sent_field(error: Mapping[str, Any]) -> str:
    """The field of the body that an error object names, whatever of it is meant."""
    return re.split(r"[.\[]", str(error["param"]))[0]
