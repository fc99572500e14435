"""How the adapter stops, on a process that is no engine."""

from __future__ import annotations

import asyncio
import subprocess

import psutil

from llmserve.clock import MonotonicClock
from llmserve.engines.vllm.engine import VllmEngine
from llmserve.engines.vllm.launch import Launch


def test_who_stops_while_another_does_returns_when_all_has_ended() -> None:
    """As a session does that is closed while its interrupted start still tidies up."""

    async def stop(child: subprocess.Popen[bytes]) -> None:
        engine = VllmEngine(sink=lambda _: None, clock=MonotonicClock())
        engine._launch = Launch()
        engine._family = [psutil.Process(child.pid)]
        first = asyncio.create_task(engine.stop())
        await asyncio.sleep(0)
        first.cancel()
        await engine.stop()
        assert child.poll() is not None

    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            asyncio.run(stop(child))
        finally:
            child.kill()
