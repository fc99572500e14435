"""Frames, and a real child process that speaks them."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time

from llmserve.engines.process.child import HEADER, Child, Frames
from support.flooding_child import FRAMES, frame


class Listener:
    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.expected = FRAMES
        self.complete = asyncio.Event()
        self.ends = 0

    def child_said(self, frame: bytes) -> None:
        self.frames.append(frame)
        if len(self.frames) == self.expected:
            self.complete.set()

    def child_ended(self) -> None:
        self.ends += 1


def test_frames_come_out_whole_however_the_stream_is_cut() -> None:
    dice = random.Random(0)
    sent = [dice.randbytes(dice.choice([0, 1, 5, 3000])) for _ in range(60)]
    stream = b"".join(HEADER.pack(len(one)) + one for one in sent)
    for longest in (1, 3, 7, 5000, len(stream)):
        frames, got, at = Frames(), list[bytes](), 0
        while at < len(stream):
            size = dice.randint(1, longest)
            got += frames.feed(stream[at : at + size])
            at += size
        assert got == sent


def test_a_child_does_not_wait_for_a_busy_kernel_and_nothing_is_lost() -> None:
    async def main() -> None:
        listener = Listener()
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        child = Child("support.flooding_child", path, listener)
        await child.start()
        while "did not wait" not in child.last_lines():
            time.sleep(0.01)  # noqa: ASYNC251  # the kernel is busy, that is the point
        assert len(listener.frames) < FRAMES
        await listener.complete.wait()
        assert listener.frames == [frame(number) for number in range(FRAMES)]
        listener.complete.clear()
        listener.expected += 1
        child.send(b"echo")
        await listener.complete.wait()
        assert listener.frames[-1] == b"echo"
        await child.stop()
        await child.stop()
        assert listener.ends == 1
        child.send(b"into the void")

    asyncio.run(asyncio.wait_for(main(), 60))


def test_last_words_and_status_of_a_child_that_ends_itself() -> None:
    async def main() -> None:
        listener = Listener()
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        child = Child("support.flooding_child", path, listener)
        await child.start()
        child.send(b"die")
        assert await child.exit_status() == 1
        assert child.last_lines().splitlines()[-1] == "last words"
        assert listener.ends == 1
        await child.stop()

    asyncio.run(asyncio.wait_for(main(), 60))
