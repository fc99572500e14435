"""Mooncake's traces: JSON lines of lengths, times in milliseconds, and hashes of 512-token blocks.

A block's hash stands for all of the prompt up to its end, so equal hashes are equal beginnings.
A prompt shares the longest beginning that another one of the trace has too; where the others
share less with one another than that, their own common part is not replayed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from llmserve.bench.load.workload import Arrival
from llmserve.core.bounds import BOUNDS
from llmserve.core.validation import real, whole
from llmserve.engines.limits import MOST_TOKENS

BLOCK = 512
_MOST_MS = 1e15


class MooncakeError(ValueError):
    """A line that is none of Mooncake's; the message has its number."""


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def is_mooncake(path: Path) -> bool:
    """By its first line."""
    with path.open("rb") as file:
        try:
            return msgspec.json.decode(file.readline(1 << 20), type=_Line) is not None
        except msgspec.MsgspecError:
            return False


def read_mooncake(path: Path) -> Iterator[Arrival]:
    """Requests without a prompt or a reply are left out."""
    lines = list(_lines(path))
    shared = Counter(block for line in lines for block in set(line.hash_ids))
    for line in lines:
        if line.input_length < 1 or line.output_length < 1:
            continue
        head = 0
        while head < len(line.hash_ids) and shared[line.hash_ids[head]] > 1:
            head += 1
        tokens = min(head * BLOCK, line.input_length - 1)
        yield Arrival(
            line.timestamp / 1e3, line.input_length, line.output_length, 0,
            prefix_tokens=tokens, prefix_salt=line.hash_ids[head - 1] if tokens else 0,
        )  # fmt: skip


def _lines(path: Path) -> Iterator[_Line]:
    most = int(BOUNDS["max_tokens"].high)
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                line = msgspec.json.decode(text, type=_Line)
                real("timestamp", line.timestamp, -_MOST_MS, _MOST_MS, "ms")
                whole("input_length", line.input_length, 0, MOST_TOKENS, "tokens")
                whole("output_length", line.output_length, 0, most, "tokens")
                for block in line.hash_ids:
                    whole("a hash_id", block, 0, 1 << 48)
            except ValueError as error:
                raise MooncakeError(f"{path.name}, line {number}: {error}") from None
            yield line
