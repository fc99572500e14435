"""A torch engine killed under load: who ran hears it, who waited is served by the next one."""

from __future__ import annotations

import asyncio

import psutil

import llmserve
from llmserve.core.events import Event, TokensEmitted
from llmserve.core.types import Outcome, Request, SamplingParams
from llmserve.engines.base import EngineError
from llmserve.engines.process.processes import has_ended


def test_a_killed_child_ends_what_ran_and_what_waits_is_served_by_the_next() -> None:
    with llmserve.serve(
        engine="torch", threads=1, dtype="float32", max_active=2, queue_timeout_s=100
    ) as session:
        killed = psutil.Process(session.info.pids[0])
        shot: list[str] = []

        def shoot(event: Event) -> None:
            if isinstance(event, TokensEmitted) and not shot:
                shot.extend(event.counts)
                killed.kill()

        def ask(i: int) -> Request:
            # the first two are killed on their way, however late their first token is heard of
            tokens = 1900 if i < 2 else 60
            sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
            return Request(
                id=f"r{i}", prompt_ids=(5, 6, 7 + i), sampling=sampling,
                arrival=session.clock.now(),
            )

        async def all_at_once() -> list[Outcome | BaseException]:
            streams = [session.service.submit(ask(i)) for i in range(6)]
            return await asyncio.gather(
                *(stream.collect() for stream in streams), return_exceptions=True
            )

        session.bus.attach(shoot)
        ends = session.runtime.call(all_at_once())
        session.bus.detach(shoot)
        assert shot
        failed, served = ends[:2], ends[2:]
        assert all(isinstance(end, EngineError) for end in failed), failed
        assert all("process died (SIGKILL)" in str(end) for end in failed)
        assert [len(end.token_ids) for end in served if isinstance(end, Outcome)] == [60] * 4
        assert session.info.pids[0] != killed.pid
        assert has_ended(killed)
