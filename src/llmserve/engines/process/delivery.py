"""Delivers an engine's messages to a request's `deliver`, waking no task for each token.

Invariant: once a request has had its end, nothing is delivered to it and nothing raised in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llmserve.core.types import Chunk
from llmserve.engines.base import Deliver


class Delivery:
    """What an engine's `generate` waits for: await `over`.

    It ends with the last chunk, with a failure, with what `deliver` raised (so that it reaches
    no other request), or with the task that waits for it.
    """

    def __init__(self, deliver: Deliver) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._deliver = deliver

    def give(self, chunk: Chunk) -> None:
        if self.over.done():
            return
        try:
            self._deliver(chunk)
        except Exception as error:  # it is raised by `generate`
            self.fail(error)
        else:
            if chunk.finish_reason is not None and not self.over.done():
                self.over.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.over.done():
            self.over.set_exception(error)


class LoopTurn:
    """Calls all that have news in this turn of the loop, in one go when it is over.

    What several steps brought a request in one turn, because the loop was busy, is one chunk then.
    """

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []

    def note(self, hand_on: Callable[[], None]) -> None:
        """Call `hand_on` once when this turn is over. It must not raise."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._end)
        self._due.append(hand_on)

    def _end(self) -> None:
        due, self._due = self._due, []
        for hand_on in due:
            hand_on()
