"""How the adapter stops, on a process that is no engine."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import subprocess

import psutil
import pytest

from llmserve.core.clock import MonotonicClock
from llmserve.engines.vllm.engine import VllmEngine
from llmserve.engines.vllm.process_files import Launch


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


def test_what_vllm_says_behind_its_end_is_printed_nowhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("vllm")
    monkeypatch.setattr(logger, "handlers", logger.handlers[:])  # of an engine that runs beside
    launch = Launch()
    logging.config.dictConfig(json.loads(launch.logging_config().read_text()))
    launch.remove()
    logging.getLogger("vllm.v1.utils").warning("force killing remaining processes")
    assert capsys.readouterr().err == ""
