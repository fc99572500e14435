"""A streamed answer, sent as its tokens come: no task is woken for a token.

The first event leaves by the answer's own task, for until then an error is a status. From then on
the pacer calls for what has come, and it is written to the connection there and then; where the
client does not keep up, a task waits for it, and what comes meanwhile stays in the streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from llmserve.core.types import joined
from llmserve.entrypoints.http.asgi import JsonAnswer
from llmserve.entrypoints.http.pacing import Pacer
from llmserve.entrypoints.http.replies import ReplyShape
from llmserve.serving.stream import Stream


class PushedEvents:
    """The events of one answer but its last."""

    def __init__(
        self,
        streams: Sequence[Stream],
        reply: ReplyShape,
        answer: JsonAnswer,
        pacer: Pacer,
    ) -> None:
        self.sent_at = 0.0
        self._streams, self._reply, self._answer, self._pacer = streams, reply, answer, pacer
        self._news: dict[int, None] = {}
        """Choices with news, in the order in which it came."""
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None
        """What the answer's own task waits for: the first event, and the end."""
        self._pushing = False
        self._noted = False
        self._failed = False
        self._broken: Exception | None = None
        self._open = len(streams)
        self._slow: asyncio.Task[None] | None = None

    async def send_all(self) -> bytes:
        """Send all events until the streams have ended, but for the newest: they are returned, to
        leave with the last. Raises what the first failing stream raises, when all before is
        sent."""
        self._pacer.open += 1
        try:
            for choice, stream in enumerate(self._streams):
                stream.listen(partial(self._heard, choice))
            while not self._over:
                await self._waited()
                if not self._over and (frames := self._frames()):
                    self.sent_at = self._loop.time()
                    await self._answer.events(frames)
                    self._pushing = True
                    if self._news:
                        self._note()
            if self._broken is not None:
                raise self._broken
            if self._slow is not None:
                await self._slow
            frames = self._frames()
            if self._failed:
                if frames:
                    await self._answer.events(frames)
                for stream in self._streams:
                    stream.raise_failure()
            return frames
        finally:
            self._pacer.open -= 1
            self._pushing = False
            for stream in self._streams:  # who holds whom is no ring then
                stream.listen(None)
            if self._slow is not None:
                self._slow.cancel()

    def send_now(self) -> bool:
        """Called by the pacer."""
        self._noted = False
        if not self._pushing or self._slow is not None or self._over:
            return False
        try:
            frames = self._frames()
        except Exception as error:  # it is raised in this answer's own task, and in no other's
            self._broken = error
            self._rouse()
            return False
        if frames and not self._answer.write_now(frames):
            self._slow = self._loop.create_task(self._wait_for_client(frames))
        return bool(frames)

    @property
    def _over(self) -> bool:
        return self._failed or not self._open or self._broken is not None

    async def _waited(self) -> None:
        if self._news and not self._pushing:
            return
        self._wake = self._loop.create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _heard(self, choice: int) -> None:
        """Once for each token."""
        self._news[choice] = None
        stream = self._streams[choice]
        if stream.ended:
            self._open -= 1
            self._failed = self._failed or stream.failed
        if self._pushing and not self._over:
            if not self._noted:
                self._note()
        else:
            self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _note(self) -> None:
        self._noted = True
        self._pacer.note(self)

    def _frames(self) -> bytes:
        news, self._news = self._news, {}
        frame, joins, frames = self._reply.frame, self._pacer.joins, list[bytes]()
        for choice in news:
            if chunks := self._streams[choice].ready():
                own = [joined(chunks)] if joins else chunks
                frames += [frame(choice, one) for one in own]
        return b"".join(frames)

    async def _wait_for_client(self, frames: bytes) -> None:
        await self._answer.events(frames)
        self._slow = None
        if self._news and not self._noted:
            self._note()
