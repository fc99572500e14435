"""Who waits for a long start is told what it does, and when that is over."""

from __future__ import annotations

import asyncio
import threading

import pytest

from llmserve.engines.torch.model import select_forward
from llmserve.engines.torch.model.select_forward import reporting_late


def test_a_long_start_tells_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select_forward, "LATE_S", 0.0)
    told: list[str] = []
    first = asyncio.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def tell(what: str) -> None:
            told.append(what)
            loop.call_soon_threadsafe(first.set)

        with reporting_late(tell, "compiling"):
            await first.wait()

    asyncio.run(asyncio.wait_for(main(), 10))
    monkeypatch.setattr(select_forward, "LATE_S", 60.0)
    with reporting_late(told.append, "nothing long"):
        pass
    assert told == ["compiling", ""]


def test_a_stage_that_ends_as_it_is_told_is_told_to_be_over_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(select_forward, "LATE_S", 0.0)
    told: list[str] = []
    begun = threading.Event()

    def tell(what: str) -> None:
        begun.set()
        if what:
            left.wait(0.2)  # nobody sets it: who leaves does not get here first
        told.append(what)

    left = threading.Event()
    with reporting_late(tell, "compiling"):
        begun.wait()
    assert told == ["compiling", ""]
