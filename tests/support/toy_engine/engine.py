"""A parrot: what every engine must do, one thing that only some can, and two options."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal

from llmserve.core.clock import Clock
from llmserve.core.knobs import Applied, Knobs
from llmserve.core.types import Chunk, Request
from llmserve.engines.base import Deliver, EngineInfo, StepSink
from llmserve.engines.tokenizer import PLAIN_CHAT, ChatOptions


class Letters:
    """A token is a character."""

    chat_template: str | None = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()

    def token_name(self, token_id: int) -> str:
        return chr(token_id)

    def chat(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
    ) -> list[int]:
        return self.encode(str(messages[-1]["content"]))


class ToyEngine:
    """Says each prompt back, a character per step; it can pause."""

    dead = False
    tokenizer = Letters()

    def __init__(
        self,
        *,
        sink: StepSink,
        clock: Clock,
        model: str = "parrot",
        voice: Literal["plain", "loud"] = "plain",
    ) -> None:
        self._loud = voice == "loud"
        self._going = asyncio.Event()
        self.info = EngineInfo(
            engine="toy", model_id=model, max_model_len=4096, kv_capacity_tokens=65_536
        )

    async def start(self) -> None:
        self._going.set()

    async def stop(self) -> None: ...

    async def apply(self, knobs: Knobs) -> Applied:
        return Applied(values=knobs, changed={})

    async def generate(self, request: Request, deliver: Deliver) -> None:
        said = self.tokenizer.decode(request.prompt_ids)[: request.sampling.max_tokens]
        for place, letter in enumerate(said.upper() if self._loud else said, 1):
            await self._going.wait()
            await asyncio.sleep(0)
            ended = place == len(said)
            deliver(
                Chunk(
                    text=letter,
                    token_ids=(ord(letter),),
                    finish_reason="stop" if ended else None,
                )
            )

    async def pause(self) -> None:
        self._going.clear()

    async def resume(self) -> None:
        self._going.set()
