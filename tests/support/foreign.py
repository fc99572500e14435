"""An OpenAI endpoint that is no llmserve; every reply is one word, and tells no usage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Foreign(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bodies: list[dict[str, Any]]

    def do_GET(self) -> None:
        known = self.path == "/v1/models"
        self._answer(200 if known else 404, json.dumps({"data": [{"id": "m"}]}).encode())

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        chunk = {"choices": [{"index": 0, "text": "word", "finish_reason": "length"}]}
        self._answer(200, b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing to say."""


@contextmanager
def foreign() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its url, and the bodies of the requests that it gets."""
    bodies: list[dict[str, Any]] = []
    handler = type("Recording", (Foreign,), {"bodies": bodies})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
