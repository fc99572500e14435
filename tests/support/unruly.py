"""Clients of every kind on raw sockets: those that read all of their answer, and those that leave,
half-close, read slowly or never, or say nothing at all."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from support.raw_http import CLOSE, Answer, answer, request

_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"at": {"enum": ["sea", "sky"]}},
            "required": ["at"],
        },
    },
}
_ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "logprobs": {"logprobs": 2},
    "three": {"n": 3, "temperature": 1.0},
    "stop": {"stop": [" sea", " lamp", " night"]},
    "usage": {},
}
FORMS = (*_ASKED, "tools")
READERS = ("reads", "reads by 1.0", "reads half-closed", "reads slowly")
LEAVERS = ("leaves", "resets", "leaves half-closed", "never reads", "says nothing", "says half")


def asked(form: str, number: int, max_tokens: int) -> tuple[str, dict[str, Any]]:
    """The path and the body of a request of this form; the same number asks the same."""
    body = {"max_tokens": max_tokens, "seed": number}
    if form == "tools":
        told = [{"role": "user", "content": f"Where shall I look, the {number}th time?"}]
        choice = {"tools": [_TOOL], "tool_choice": "required", "messages": told}
        return "/v1/chat/completions", {**body, **choice}
    return "/v1/completions", {**body, "prompt": f"story {number}", **_ASKED[form]}


def said(found: Answer) -> list[dict[str, Any]]:
    """What an answer says, choice by choice, whether it came in events or as a whole."""
    choices: dict[int, dict[str, Any]] = {}
    streamed = found.headers["content-type"].startswith("text/event-stream")
    for one in map(json.loads, found.events[:-1]) if streamed else [found.json]:
        for choice in one["choices"]:
            into = choices.setdefault(choice["index"], {"text": "", "tokens": [], "calls": ""})
            message = choice.get("delta") or choice.get("message") or {}
            into["text"] += choice.get("text") or message.get("content") or ""
            for call in message.get("tool_calls") or ():
                into["calls"] += call["function"].get("name") or ""
                into["calls"] += call["function"].get("arguments") or ""
            into["tokens"] += (choice.get("logprobs") or {}).get("tokens") or []
            into["finish"] = choice.get("finish_reason") or into.get("finish")
    return [choices[index] for index in sorted(choices)]


@dataclass
class Seen:
    """What clients met."""

    kinds: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    """Answers that were errors, and said so as designed; by code."""
    wrong: list[str] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)
    """Between two reads of one honest client in the middle of its answer."""


class Unruly:
    """Clients of one server, in the loop that calls."""

    def __init__(
        self, port: int, key: str, *, max_tokens: int = 30, patience_s: float = 60
    ) -> None:
        self.seen = Seen()
        self._port, self._key = port, key
        self._max_tokens, self._patience_s = max_tokens, patience_s
        self._whole: dict[tuple[str, int], list[dict[str, Any]]] = {}

    async def learn(self, numbers: int) -> None:
        """Ask each request of each form once, not streamed: what it says is what it shall say."""

        async def learn_one(form: str, number: int) -> None:
            path, body = asked(form, number, self._max_tokens)
            found = answer(await self._read_all(await self._open(self._bytes(path, body))))
            assert found.status == 200, found.body
            self._whole[form, number] = said(found)

        await asyncio.gather(
            *[learn_one(form, number) for form in FORMS for number in range(numbers)]
        )

    async def client(self, kind: str, draw: random.Random) -> None:
        """One client of this kind; what it met is in `seen`."""
        self.seen.kinds[kind] += 1
        try:
            async with asyncio.timeout(self._patience_s):
                if kind in READERS:
                    await self._reader(kind, draw)
                else:
                    await self._leaver(kind, draw)
        except TimeoutError:
            self.seen.wrong.append(f"{kind}: no end within {self._patience_s:g} s")
        except OSError as error:
            if kind in READERS:
                self.seen.wrong.append(f"{kind}: {error!r}")

    async def _reader(self, kind: str, draw: random.Random) -> None:
        form, number = draw.choice(list(self._whole))
        path, body = asked(form, number, self._max_tokens)
        version = "1.0" if kind == "reads by 1.0" else "1.1"
        body["stream"] = True
        if form == "usage":
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        raw = self._bytes(path, body, version=version)
        sock = await self._open(raw, small=kind == "reads slowly")
        if kind == "reads half-closed":
            sock.shutdown(socket.SHUT_WR)
        came = await self._read_all(sock, slowly=kind == "reads slowly", gaps=kind == "reads")
        try:
            self._check(answer(came), self._whole[form, number])
        except Exception as error:
            self.seen.wrong.append(f"{kind}, {form} {number}: {error!r} in {came[-600:]!r}")

    def _check(self, found: Answer, whole: list[dict[str, Any]]) -> None:
        if found.status != 200:
            self.seen.failed[f"status {found.status}"] += 1
            return
        assert found.events[-1] == b"[DONE]", "no [DONE]"
        assert found.events.count(b"[DONE]") == 1, "[DONE] twice"
        failure = json.loads(found.events[-2]).get("error")
        if failure is not None:
            self.seen.failed[str(failure.get("code") or failure["type"])] += 1
            return
        assert said(found) == whole, f"{said(found)} instead of {whole}"

    async def _leaver(self, kind: str, draw: random.Random) -> None:
        path, body = asked(draw.choice(FORMS), draw.randrange(99), self._max_tokens)
        body |= {"max_tokens": 2000, "ignore_eos": True} if kind == "never reads" else {}
        raw = self._bytes(path, {**body, "stream": True})
        told = {"says nothing": 0, "says half": draw.randrange(len(raw))}.get(kind, len(raw))
        sock = await self._open(raw[:told], small=kind == "never reads")
        try:
            if kind == "leaves half-closed":
                sock.shutdown(socket.SHUT_WR)
            if kind in ("never reads", "says nothing", "says half"):
                await asyncio.sleep(draw.random() * 2)
            else:
                loop = asyncio.get_running_loop()
                for _ in range(draw.choice((0, 1, 1, 3, 10))):
                    await loop.sock_recv(sock, 500)
            if kind == "resets":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        finally:
            sock.close()

    def _bytes(self, path: str, body: Mapping[str, object], *, version: str = "1.1") -> bytes:
        return request("POST", path, body, CLOSE, version=version, key=self._key)

    async def _open(self, raw: bytes, *, small: bool = False) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        try:
            if small:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", self._port))
            await loop.sock_sendall(sock, raw)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _read_all(
        self, sock: socket.socket, *, slowly: bool = False, gaps: bool = False
    ) -> bytes:
        loop, parts, before = asyncio.get_running_loop(), list[bytes](), 0.0
        with sock:
            while part := await loop.sock_recv(sock, 700 if slowly else 65_536):
                now = time.monotonic()
                if gaps and len(parts) > 1:
                    self.seen.gaps_ms.append((now - before) * 1e3)
                before = now
                parts.append(part)
                if slowly:
                    await asyncio.sleep(0.01)
        return b"".join(parts)


async def crowd(clients: Unruly, kinds: Mapping[str, int], seconds: float, seed: int) -> None:
    """So many clients of each kind at once, each followed by its next, for so long; the last ones
    end as they will."""
    end = time.monotonic() + seconds

    async def place(kind: str, draw: random.Random) -> None:
        await asyncio.sleep(draw.random() * min(1.0, seconds / 4))
        while time.monotonic() < end:
            await clients.client(kind, draw)
            with suppress(TimeoutError):
                await asyncio.sleep(draw.random() * 0.05)

    places = [kind for kind, number in kinds.items() for _ in range(number)]
    draws = [random.Random(f"{seed} {index}") for index in range(len(places))]
    await asyncio.gather(*map(place, places, draws))
