"""The simulator in a process of its own: the same replies, in real time, beside a busy kernel."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from llmserve.core.clock import MonotonicClock, VirtualClock
from llmserve.core.knobs import Knobs
from llmserve.core.types import Chunk, ParamError, Request, SamplingParams, StepRecord, Structured
from llmserve.engines.base import Engine, EngineError, RequestFailed
from llmserve.engines.process.messages import (
    Abort,
    Adopted,
    Delta,
    ResetCache,
    Retune,
    Stepped,
    SubmitRequest,
)
from llmserve.engines.registry import create
from llmserve.engines.simulator.paced import AHEAD, PacedSteps
from llmserve.engines.simulator.process_engine import SimulatorProcess
from llmserve.engines.simulator.setup import SimulatorSetup
from llmserve.engines.simulator.vocabulary import WORDS, WordTokenizer
from llmserve.lab import Workload, simulate
from support.simulation import Received, Simulation

PROMPT = tuple(WordTokenizer().encode("tell me"))


def asked(id: str, **sampling: Any) -> Request:
    return Request(id=id, prompt_ids=PROMPT, sampling=SamplingParams(**sampling), arrival=0.0)


class Steps:
    """`PacedSteps` driven at times of the test's own."""

    def __init__(self, knobs: Knobs | None = None, **options: Any) -> None:
        self.paced = PacedSteps(SimulatorSetup(**options), knobs or Knobs())
        self.now = 0.0
        self.records: list[StepRecord] = []
        self.deltas: list[Delta] = []

    def submit(self, id: str, **sampling: Any) -> None:
        one = asked(id, **sampling)
        answer = self.paced.handle(SubmitRequest(id, one.prompt_ids, one.sampling), self.now)
        if isinstance(answer, Stepped):
            self.deltas += answer.deltas

    def step(self, late: float = 0.0) -> float | None:
        end = self.paced.begin(self.now)
        if end is None:
            return None
        self.now = end + late
        self.finish()
        return end

    def finish(self) -> None:
        told = self.paced.finish(self.now)
        assert told.record is not None
        self.records.append(told.record)
        self.deltas += told.deltas
        self.paced.planner.check()

    def chunks(self, id: str) -> list[Delta]:
        return [delta for delta in self.deltas if delta.id == id]


FORMS: list[dict[str, Any]] = [
    {"max_tokens": 3 * AHEAD},
    {"max_tokens": 9, "seed": 5},
    {"max_tokens": 150, "seed": 6},
    {"max_tokens": 150, "seed": 7},
    {"max_tokens": 0, "prompt_logprobs": 1},
    {"max_tokens": 12, "logprobs": 0},
    {"max_tokens": 6, "prompt_logprobs": 2, "logprobs": 1},
    {"max_tokens": 80, "stop": (WORDS[3], WORDS[40], "ar")},
    {"max_tokens": 80, "stop": ("ig",), "include_stop_str_in_output": True},
    {"max_tokens": 50, "structured_outputs": Structured("regex", "[ab]{3}c")},
]


@pytest.mark.parametrize("kv", [131_072, 192], ids=["room", "preempting"])
def test_it_says_token_by_token_what_the_simulator_in_the_kernel_says(kv: int) -> None:
    told: list[Received] = []

    async def test(sim: Simulation) -> None:
        every = [sim.ask(f"r{i}", **form) for i, form in enumerate(FORMS)]
        told.extend(await asyncio.gather(*every))

    options: dict[str, Any] = {"kv_capacity_tokens": kv, "max_model_len": 300}
    sim = Simulation(**options).run(test)
    steps = Steps(**options)
    for i, form in enumerate(FORMS):
        steps.submit(f"r{i}", **form)
    while steps.step() is not None:
        pass
    for i, received in enumerate(told):
        got = [_chunk(delta) for delta in steps.chunks(f"r{i}")]
        assert got == received.chunks, FORMS[i]
    ours = [msgspec.structs.replace(one, start_s=0.0, duration_s=0.0) for one in steps.records]
    theirs = [msgspec.structs.replace(one, start_s=0.0, duration_s=0.0) for one in sim.records]
    assert ours == theirs
    assert any(record.preempted for record in ours) == (kv == 192)


def _chunk(delta: Delta) -> Chunk:
    fields = msgspec.structs.asdict(delta)
    return Chunk(**{name: fields[name] for name in fields if name in Chunk.__struct_fields__})


def test_steps_end_at_their_deadlines_and_lateness_does_not_add_up() -> None:
    steps = Steps(prefill_ms=25, decode_ms=10)
    steps.submit("a", max_tokens=50)
    ends = [steps.step(late=0.002) for _ in range(50)]
    assert ends == [pytest.approx(0.025 + 0.010 * i) for i in range(50)]
    first, second = steps.records[:2]
    assert first.start_s == 0.0
    assert first.duration_s == pytest.approx(0.027), "as it was, and not as it was meant"
    assert second.start_s == pytest.approx(0.027)


def test_a_machine_that_slept_does_not_race_to_catch_up() -> None:
    steps = Steps(prefill_ms=10, decode_ms=10)
    steps.submit("a", max_tokens=50)
    steps.step()
    steps.now += 10.0
    assert steps.step() == pytest.approx(10.010 - 0.1 + 0.010)


def test_what_comes_during_a_step_holds_from_the_next_one_and_leaving_at_once() -> None:
    steps = Steps()
    steps.submit("a", max_tokens=9)
    steps.submit("b", max_tokens=9)
    assert steps.paced.handle(Retune(1, Knobs(max_num_seqs=3)), 0.0) == Adopted(1, 0)
    steps.step()
    end = steps.paced.begin(steps.now)
    assert end is not None
    assert steps.paced.handle(Retune(2, Knobs(max_num_seqs=1)), end) == Adopted(2, 2)
    assert steps.paced.handle(ResetCache(3), end) == Adopted(3, 2)
    assert steps.paced.handle(Abort("b"), end) is None
    steps.submit("c", max_tokens=2)
    steps.now = end
    steps.finish()
    assert len(steps.chunks("b")) == 1
    assert steps.records[1].running == 1
    steps.step()
    assert [record.max_num_seqs for record in steps.records] == [3, 3, 1]
    assert [row.request_id for row in steps.records[2].rows] == ["a"]
    while steps.step() is not None:
        pass
    assert len(steps.chunks("c")) == 2


def test_a_name_that_comes_back_during_its_old_step_starts_anew() -> None:
    steps = Steps()
    steps.submit("a", max_tokens=9)
    steps.step()
    end = steps.paced.begin(steps.now)
    assert end is not None
    steps.paced.handle(Abort("a"), end)
    steps.submit("a", max_tokens=2)
    steps.now = end
    steps.finish()
    assert len(steps.chunks("a")) == 1
    while steps.step() is not None:
        pass
    assert steps.chunks("a")[1].token_ids == steps.chunks("a")[0].token_ids


def test_a_static_batch_waits_for_its_window() -> None:
    steps = Steps(Knobs(batching="static", batch_window_ms=20))
    steps.submit("a", max_tokens=1)
    assert steps.step() is None
    when = steps.paced.wake_at(steps.now)
    assert when is not None
    assert when == pytest.approx(0.020)
    steps.now = when
    assert steps.step() == pytest.approx(0.045)


def test_what_cannot_run_fails_alone_with_the_reason() -> None:
    steps = Steps(max_model_len=64)
    steps.submit("good", max_tokens=2)
    steps.submit("form", structured_outputs=Structured("regex", "["))
    long = SubmitRequest("long", tuple(range(64)), SamplingParams())
    answer = steps.paced.handle(long, 0.0)
    assert isinstance(answer, Stepped)
    assert "exceed 64" in (answer.deltas[0].error or "")
    (form,) = steps.chunks("form")
    assert (form.finish_reason, form.param) == ("error", "structured_outputs")
    while steps.step() is not None:
        pass
    assert len(steps.chunks("good")) == 2


async def until(there: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if there():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come in ten seconds")


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[tuple[SimulatorProcess, list[StepRecord]]]:
    records: list[StepRecord] = []
    made: Engine = create(
        "simulator", sink=records.append, clock=MonotonicClock(), process=True, **options
    )
    assert isinstance(made, SimulatorProcess)
    await made.start()
    try:
        yield made, records
    finally:
        await made.stop()


def test_the_process_steps_on_while_the_kernel_holds_its_interpreter() -> None:
    async def main() -> None:
        async with running(prefill_ms=5, decode_ms=5) as (engine, records):
            got: list[Chunk] = []
            task = asyncio.create_task(engine.generate(asked("a", max_tokens=40), got.append))
            await until(lambda: bool(got))
            before = len(records)
            blocked = time.monotonic()
            while len(records) == before or records[-1].index < 39:
                time.sleep(0.3)  # noqa: ASYNC251  # as a cell that holds the GIL would
                await asyncio.sleep(0.01)
            await task
            held = [one for one in records[before:] if one.start_s > blocked]
            assert held, "steps began while nothing of this process ran"
            assert any(len(chunk.token_ids) > 1 for chunk in got), "delivered late, in one chunk"
            assert sum(len(chunk.token_ids) for chunk in got) == 40
            assert engine.info.pids == (engine._running().child.pid,)

    asyncio.run(main())


def test_a_process_that_dies_ends_its_requests_and_can_be_started_anew() -> None:
    async def main() -> None:
        async with running(decode_ms=5) as (engine, records):
            task = asyncio.create_task(engine.generate(asked("a", max_tokens=5000), lambda _: None))
            await until(lambda: bool(records))
            os.kill(engine.info.pids[0], signal.SIGKILL)
            with pytest.raises(EngineError, match=r"simulator engine's process died \(SIGKILL\)"):
                await task
            assert engine.dead
            await engine.start()
            assert not engine.dead
            got: list[Chunk] = []
            await engine.generate(asked("b", max_tokens=2), got.append)
            assert got[-1].finish_reason == "length"

    asyncio.run(main())


def test_knobs_and_refusals_cross_the_process_border() -> None:
    async def main() -> None:
        async with running(max_num_seqs_ceiling=8, max_model_len=64) as (engine, records):
            applied = await engine.apply(Knobs(max_num_seqs=100))
            assert applied.values.max_num_seqs == 8
            assert applied.adopted_step == 0
            await engine.reset_cache()
            long = msgspec.structs.replace(asked("a"), prompt_ids=tuple(range(64)))
            with pytest.raises(RequestFailed, match="exceed 64"):
                await engine.generate(long, lambda _: None)
            form = Structured("regex", "[")
            with pytest.raises(ParamError, match="cannot be kept to"):
                await engine.check_form(form)
            with pytest.raises(ParamError, match="cannot be kept to"):
                await engine.generate(asked("b", structured_outputs=form), lambda _: None)
            await engine.generate(asked("c", max_tokens=1), lambda _: None)
            assert records[0].max_num_seqs == 8
        with pytest.raises(EngineError, match="not running"):
            await engine.generate(asked("d"), lambda _: None)

    asyncio.run(main())


def test_virtual_time_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"real time.*\(VirtualClock\): leave process out"):
        create("simulator", sink=lambda record: None, clock=VirtualClock(), process=True)
    with pytest.raises(ValueError, match=r"process=True steps in real time.*leave it out here"):
        simulate(Workload(rate=1, requests=1), process=True)


@pytest.mark.parametrize("value", ["maybe", 2, None])
def test_the_switch_is_yes_or_no(value: object) -> None:
    with pytest.raises(ValueError, match="process"):
        create("simulator", sink=lambda record: None, clock=MonotonicClock(), process=value)
