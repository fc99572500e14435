"""An engine whose every token is written in the test: for tests of what stands around engines."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise

from llmserve.core.knobs import Applied, Clamp, Knobs, differences
from llmserve.core.types import Chunk, Request
from llmserve.engines.base import Deliver, EngineError, EngineInfo
from llmserve.engines.tokenizer import PLAIN_CHAT, ChatOptions


class ByteTokenizer:
    chat_template: str | None = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes((token_id,))

    def token_name(self, token_id: int) -> str:
        return f"<0x{token_id:02X}>"

    def chat(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
    ) -> list[int]:
        return self.encode("".join(f"{m['role']}:{m['content']}\n" for m in messages))


class ScriptedEngine:
    """Gives each request the same pieces, one per `gap_s`; `hold()` makes them wait for `go()`."""

    tokenizer = ByteTokenizer()

    def __init__(self, pieces: Sequence[str], gap_s: float = 0.0, ceiling: int = 256) -> None:
        self._pieces = list(pieces)
        self._gap_s = gap_s
        self._ceiling = ceiling
        self._gate = asyncio.Event()
        self._gate.set()
        self.here: list[str] = []
        self.freed: list[str] = []
        self.starts = 0
        self.fail_next: Exception | None = None
        self.start_failures = 0
        self.start_failure: Exception = EngineError("it did not start")
        self.stops = 0
        self.applied: list[Knobs] = []
        self.lives = asyncio.Event()
        """Clear it, and the next start takes until it is set."""
        self.lives.set()
        self.dead = False
        self.info = EngineInfo(
            engine="scripted", model_id="script", max_model_len=100, kv_capacity_tokens=1000
        )

    def hold(self) -> None:
        self._gate.clear()

    def go(self) -> None:
        self._gate.set()

    async def start(self) -> None:
        self.starts += 1
        await self.lives.wait()
        if self.start_failures:
            self.start_failures -= 1
            raise self.start_failure
        self.dead = False

    async def stop(self) -> None:
        self.stops += 1
        self._gate.set()

    async def apply(self, knobs: Knobs) -> Applied:
        self.applied.append(knobs)
        if knobs.max_num_seqs <= self._ceiling:
            return Applied(knobs, {}, adopted_step=7)
        got = knobs.changed({"max_num_seqs": self._ceiling})
        clamp = Clamp("max_num_seqs", knobs.max_num_seqs, self._ceiling, "the ceiling")
        return Applied(got, differences(knobs, got), (clamp,), adopted_step=7)

    async def generate(self, request: Request, deliver: Deliver) -> None:
        self.here.append(request.id)
        try:
            for index, (piece, following) in enumerate(pairwise([*self._pieces, None])):
                await self._gate.wait()
                await asyncio.sleep(self._gap_s)
                if self.fail_next is not None:
                    error, self.fail_next = self.fail_next, None
                    raise error
                assert piece is not None
                last = following is None
                deliver(
                    Chunk(text=piece, token_ids=(index,), finish_reason="stop" if last else None)
                )
        finally:
            self.here.remove(request.id)
            self.freed.append(request.id)


class DozingEngine(ScriptedEngine):
    """With a sleep of its own, and eviction."""

    def __init__(self, pieces: Sequence[str], gap_s: float = 0.0) -> None:
        super().__init__(pieces, gap_s)
        self.slept: list[int] = []
        self.woken = 0
        self.wake_failures = 0
        self.evictions = 0

    async def sleep(self, level: int) -> str:
        assert self.here == [], "it was put to sleep with requests in it"
        self.slept.append(level)
        return f"asleep at level {level}"

    async def wake(self) -> None:
        self.woken += 1
        if self.wake_failures:
            self.wake_failures -= 1
            raise EngineError("it does not wake")

    async def evict(self) -> tuple[str, ...]:
        self.evictions += 1
        return tuple(self.here[self.applied[-1].max_num_seqs :])
