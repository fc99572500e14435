"""A lean client in a process of its own: closed loops of streaming completions over plain sockets.

Reads one JSON object per line, sends that load, answers with one line. It imports nothing that is
measured, and does no more with a reply than to note when it began and how many tokens it had.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any
from urllib.parse import urlsplit

_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


async def load(asked: dict[str, Any]) -> dict[str, Any]:
    """`concurrency` places, each sending its next prompt when its last reply has ended."""
    prompts = iter(asked["prompts"])
    ttfts: list[float] = []
    tokens = 0

    async def place() -> None:
        nonlocal tokens
        for prompt in prompts:
            ttft, count = await one(asked, prompt)
            ttfts.append(ttft)
            tokens += count

    start = time.perf_counter()
    await asyncio.gather(*(place() for _ in range(asked["concurrency"])))
    return {"tokens": tokens, "seconds": time.perf_counter() - start, "ttft_ms": ttfts}


async def one(asked: dict[str, Any], prompt: list[int]) -> tuple[float, int]:
    """TTFT in ms and the tokens of one reply."""
    address = urlsplit(asked["url"])
    raw = request(asked, address.netloc, prompt)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        sent, first, tail = time.perf_counter(), 0.0, b""
        writer.write(raw)
        while piece := await reader.read(65_536):
            if not first and b'"text":' in piece:
                first = time.perf_counter()
            tail = tail[-600:] + piece
    finally:
        writer.close()
    told = _TOKENS.findall(tail)
    if not first or not told or int(told[-1]) != asked["max_tokens"]:
        raise RuntimeError(f"no whole reply: {tail[-600:]!r}")
    return (first - sent) * 1e3, int(told[-1])


def request(asked: dict[str, Any], host: str, prompt: list[int]) -> bytes:
    body = json.dumps({
        "model": asked["model"], "prompt": prompt, "max_tokens": asked["max_tokens"],
        "temperature": 0, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }).encode()  # fmt: skip
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        f"Authorization: Bearer {asked['key']}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(asyncio.run(load(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
