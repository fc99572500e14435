"""Many streaming clients in this process, light enough not to be what is measured."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_CONTENT = re.compile(rb'"content":"((?:[^"\\]|\\.)*)"')


class Crowd:
    """`n` clients, each sending its next request when a reply has ended, until the block is left.

    `characters` grows with every piece of text that has been delivered to any of them.
    """

    def __init__(self, url: str, key: str, model: str, n: int) -> None:
        self.characters = 0
        self.begun = threading.Event()
        """Every client has been given some text."""
        self._address = urlsplit(url)
        self._key, self._model, self._n = key, model, n
        self._first: set[int] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="crowd")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _main(self) -> None:
        self._over = asyncio.Event()
        try:
            self._loop.run_until_complete(self._all())
        finally:
            self._loop.close()

    async def _all(self) -> None:
        clients = [asyncio.ensure_future(self._client(place)) for place in range(self._n)]
        await self._over.wait()
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def _client(self, place: int) -> None:
        count = 0
        while True:
            count += 1
            reader, writer = await asyncio.open_connection(
                self._address.hostname, self._address.port
            )
            try:
                writer.write(self._request(f"client {place}, request {count}"))
                while piece := await reader.read(65_536):
                    texts = _CONTENT.findall(piece)
                    if texts:
                        self.characters += sum(map(len, texts))
                        self._seen(place)
            finally:
                writer.close()

    def _seen(self, place: int) -> None:
        self._first.add(place)
        if len(self._first) == self._n:
            self.begun.set()

    def _request(self, prompt: str) -> bytes:
        body = json.dumps(
            {
                "model": self._model,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": 1000,
                "stream": True,
            }
        ).encode()
        return (
            f"POST {self._address.path}/chat/completions HTTP/1.1\r\n"
            f"Host: {self._address.netloc}\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        ).encode() + body
