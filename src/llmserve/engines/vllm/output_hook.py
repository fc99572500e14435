"""The output hook: takes one request's outputs from vLLM to our delivery.

vLLM keeps what came for a request in a RequestOutputCollector, joins there what nobody has taken
yet, and sets an event for the task that waits. The hook stands in for that event: it notes the
request for the end of this turn of the loop instead. vLLM's own loop thus meets no code of ours
that could raise, and no task is woken for a token.
"""

from __future__ import annotations

from typing import Any

from llmserve.engines.base import Deliver
from llmserve.engines.process.delivery import Delivery, LoopTurn
from llmserve.engines.vllm.convert import to_chunk


class OutputHook:
    def __init__(
        self,
        collector: Any,
        turn: LoopTurn,
        deliver: Deliver,
        *,
        raw: bool,
        prompt_alone: bool = False,
    ) -> None:
        self._collector = collector
        self._turn = turn
        self._delivery = Delivery(deliver)
        self._raw = raw
        self._prompt_alone = prompt_alone
        self._first = True
        collector.ready = self
        self.set()  # something may have come before

    async def drained(self) -> None:
        """Return after the last chunk; raises what vLLM, or `deliver`, says went wrong."""
        try:
            await self._delivery.over
        finally:
            self._collector = None  # it refers to this; the collector is to run rarely

    def set(self) -> None:
        """vLLM has put something into the collector that was empty, or an error."""
        self._turn.note(self._hand_on)

    def clear(self) -> None:
        """vLLM's collector has been emptied."""

    def _hand_on(self) -> None:
        if self._collector is None:  # the task that waited for it is gone
            return
        try:
            output = self._collector.get_nowait()
            if output is None:
                return
            chunk = to_chunk(
                output, first=self._first, raw=self._raw, prompt_alone=self._prompt_alone
            )
        except Exception as error:  # vLLM's word on this request
            self._delivery.fail(error)
            return
        self._first = False
        self._delivery.give(chunk)
