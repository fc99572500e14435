"""The simulator on virtual time: what steps cost, when knobs are adopted, how it ends."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from llmserve.core.clock import VirtualClock
from llmserve.core.knobs import Applied, Knobs
from llmserve.core.types import StepRecord
from llmserve.core.validation import shown
from llmserve.engines.base import Engine, EngineError
from llmserve.engines.registry import create
from llmserve.engines.simulator.engine import SimulatorEngine
from support.simulation import Received, Simulation


def test_a_lone_request_takes_one_prefill_and_a_decode_for_each_further_token() -> None:
    got = Received()

    async def test(sim: Simulation) -> None:
        await sim.ask("a", max_tokens=4, received=got)

    sim = Simulation().run(test)
    assert got.times_ms == [25, 35, 45, 55]
    assert sim.rows() == [{"a": "p7"}, {"a": "d1"}, {"a": "d1"}, {"a": "d1"}]
    assert [record.index for record in sim.records] == [0, 1, 2, 3]
    assert got.steps_told == [1, 2, 3, 4], "a step is told before its chunks"


def test_a_mixed_step_costs_both_parts_and_tokens_cost_extra() -> None:
    async def test(sim: Simulation) -> None:
        first = asyncio.create_task(sim.ask("a", "12345", max_tokens=4))
        await sim.clock.sleep_until(0.001)
        await asyncio.gather(first, sim.ask("b", "123", max_tokens=2))

    sim = Simulation(prefill_token_ms=2.0, decode_token_ms=0.5).run(test)
    assert sim.rows() == [{"a": "p5"}, {"a": "d1", "b": "p3"}, {"a": "d1", "b": "d1"}, {"a": "d1"}]
    assert sim.durations_ms() == [35, 25 + 6 + 10 + 0.5, 10 + 1, 10.5]


def test_work_is_continuous_and_starts_over_after_a_pause() -> None:
    async def test(sim: Simulation) -> None:
        await sim.ask("a", max_tokens=2)
        await sim.clock.sleep_until(1.0)
        await sim.ask("b", max_tokens=2)

    sim = Simulation().run(test)
    assert [round(r.start_s * 1e3, 6) for r in sim.records] == [0, 25, 1000, 1025]


def test_jitter_repeats_with_its_seed_and_differs_with_another() -> None:
    def durations(seed: int) -> list[float]:
        async def test(sim: Simulation) -> None:
            await sim.ask("a", max_tokens=400)

        return Simulation(jitter=0.2, seed=seed).run(test).durations_ms()[1:]

    once, again, other = durations(1), durations(1), durations(2)
    assert once == again
    assert once != other
    mean = sum(once) / len(once)
    spread = math.sqrt(sum((d - mean) ** 2 for d in once) / len(once))
    assert mean == pytest.approx(10, rel=0.03)
    assert spread == pytest.approx(2, rel=0.15)


class LateClock(VirtualClock):
    """Every sleep ends 2 ms late, as real ones do."""

    async def sleep_until(self, when: float) -> None:
        await super().sleep_until(when + 0.002)


def test_late_wakeups_do_not_add_up() -> None:
    got = Received()

    async def test(sim: Simulation) -> None:
        await sim.ask("a", max_tokens=101, received=got)

    Simulation(LateClock()).run(test)
    assert got.times[-1] == pytest.approx(0.025 + 100 * 0.010 + 0.002)


def test_a_loop_that_was_blocked_for_long_does_not_race_to_catch_up() -> None:
    got = Received()

    async def test(sim: Simulation) -> None:
        task = asyncio.create_task(sim.ask("a", max_tokens=101, received=got))
        await sim.clock.sleep_until(0.030)
        sim.clock.advance(10.0)
        await task

    sim = Simulation().run(test)
    assert got.times[-1] == pytest.approx(10.030 - 0.1 + 99 * 0.010)
    starts = [record.start_s for record in sim.records]
    assert all(b > a for a, b in pairwise(starts))


def test_leaving_in_the_middle_of_a_step_frees_place_and_memory_at_once() -> None:
    async def test(sim: Simulation) -> None:
        leaver = asyncio.create_task(sim.ask("a", max_tokens=100))
        waits = asyncio.create_task(sim.ask("b", max_tokens=2))
        await sim.clock.sleep_until(0.040)  # in the middle of the third step
        leaver.cancel()
        got = await waits
        assert got.times_ms == [45 + 25, 80]
        assert leaver.cancelled()

    sim = Simulation().run(test, max_num_seqs=1)
    assert sim.rows()[2:] == [{"a": "d1"}, {"b": "p7"}, {"b": "d1"}]
    assert sim.records[2].running == 0
    assert sim.records[2].kv_used_tokens == 0


def test_the_same_name_may_come_back_while_its_old_step_runs() -> None:
    async def test(sim: Simulation) -> None:
        old = asyncio.create_task(sim.ask("a", max_tokens=100))
        await sim.clock.sleep_until(0.030)
        old.cancel()
        await asyncio.wait([old])
        assert len((await sim.ask("a", max_tokens=3)).chunks) == 3

    Simulation().run(test)


def test_knobs_are_adopted_at_once_when_idle() -> None:
    applied: list[Applied] = []

    async def test(sim: Simulation) -> None:
        applied.append(await sim.engine.apply(Knobs(max_num_seqs=3)))

    Simulation().run(test)
    assert applied[0].adopted_step == 0
    assert applied[0].ms == 0
    assert applied[0].changed == {"max_num_seqs": (32, 3)}


def test_knobs_are_adopted_with_the_next_step_while_one_runs() -> None:
    async def test(sim: Simulation) -> None:
        task = asyncio.create_task(sim.ask("a", max_tokens=5))
        await sim.clock.sleep_until(0.031)
        applied = await sim.engine.apply(Knobs(max_num_seqs=3))
        assert applied.adopted_step == 2
        assert applied.ms == pytest.approx(4, abs=0.01)
        await task

    sim = Simulation().run(test)
    assert [record.max_num_seqs for record in sim.records] == [32, 32, 3, 3, 3]
    assert [record.satisfied for record in sim.records][2] == ("max_num_seqs",)


def test_two_changes_during_one_step_are_both_told_and_the_later_holds() -> None:
    async def test(sim: Simulation) -> None:
        task = asyncio.create_task(sim.ask("a", max_tokens=3))
        await sim.clock.sleep_until(0.001)
        one, two = await asyncio.gather(
            sim.engine.apply(Knobs(max_num_seqs=3)), sim.engine.apply(Knobs(max_num_seqs=5))
        )
        assert (one.changed, two.changed) == (
            {"max_num_seqs": (32, 3)},
            {"max_num_seqs": (3, 5)},
        )
        await task

    sim = Simulation().run(test)
    assert [record.max_num_seqs for record in sim.records] == [32, 5, 5]


def test_values_above_their_ceilings_are_clamped_and_told() -> None:
    async def test(sim: Simulation) -> None:
        applied = await sim.engine.apply(Knobs(max_num_seqs=100, max_num_batched_tokens=4096))
        assert (applied.values.max_num_seqs, applied.values.max_num_batched_tokens) == (8, 1024)
        assert [(c.name, c.asked, c.got) for c in applied.clamped] == [
            ("max_num_seqs", 100, 8),
            ("max_num_batched_tokens", 4096, 1024),
        ]

    Simulation(max_num_seqs_ceiling=8, max_num_batched_tokens_ceiling=1024).run(test)


def test_a_batch_window_holds_the_first_request_exactly_as_long_as_it_says() -> None:
    async def test(sim: Simulation) -> None:
        got = await asyncio.gather(sim.ask("a", max_tokens=2), sim.ask("b", max_tokens=1))
        assert got[0].times_ms == [20 + 25, 55]

    Simulation().run(test, batching="static", batch_window_ms=20)


def test_a_window_cut_short_by_a_knob_starts_the_batch_then() -> None:
    async def test(sim: Simulation) -> None:
        task = asyncio.create_task(sim.ask("a", max_tokens=1))
        await sim.clock.sleep_until(0.005)
        await sim.engine.apply(Knobs(batching="continuous"))
        assert (await task).times_ms == [30]

    Simulation().run(test, batching="static", batch_window_ms=5000)


def test_stopping_ends_the_running_with_an_engine_error_and_it_starts_anew() -> None:
    async def test(sim: Simulation) -> None:
        task = asyncio.create_task(sim.ask("a", max_tokens=100))
        await sim.clock.sleep_until(0.1)
        await sim.engine.stop()
        await sim.engine.stop()
        with pytest.raises(EngineError, match="stopped"):
            await task
        with pytest.raises(EngineError, match="not running"):
            await sim.ask("b")
        before = len(sim.records)
        await sim.engine.start()
        await sim.ask("c", max_tokens=2)
        assert [record.index for record in sim.records[before:]] == [0, 1]
        assert sim.engine.info.kv_capacity_tokens == 131_072

    Simulation().run(test)


def test_a_broken_loop_is_told_to_those_who_wait(caplog: pytest.LogCaptureFixture) -> None:
    def broken(record: StepRecord) -> None:
        raise OSError("the sink is full")

    async def test(sim: Simulation) -> None:
        with pytest.raises(EngineError, match="the sink is full"):
            await sim.ask("a")

    sim = Simulation()
    sim.engine = SimulatorEngine(sink=broken, clock=sim.clock)
    sim.run(test)
    assert "the simulator's loop failed" in caplog.text


def test_its_info_is_complete_and_a_small_memory_bounds_the_length() -> None:
    engine: Engine = create(
        "simulator",
        sink=lambda record: None,
        clock=VirtualClock(),
        kv_capacity_tokens=100,
        block_size=16,
    )
    info = engine.info
    assert (info.engine, info.model_id, info.device) == ("simulator", "simulator", "simulated")
    assert (info.kv_capacity_tokens, info.max_model_len) == (96, 97)
    assert info.ceilings == {"max_num_seqs": 256, "max_num_batched_tokens": 16_384}
    assert info.unsupported == {}
    assert info.details["prefill_ms"] == "25"


NUMBERS = (
    "prefill_ms", "decode_ms", "prefill_token_ms", "decode_token_ms", "jitter", "seed",
    "kv_capacity_tokens", "block_size", "max_model_len", "max_num_seqs_ceiling",
    "max_num_batched_tokens_ceiling",
)  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [10**5000, -(10**5000), 1e308, math.nan, "many", True], ids=shown)
def test_a_number_that_cannot_be_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} (must be within|takes a)"):
        Simulation(**{name: value})


@pytest.mark.parametrize("options", [{"jitter": 2.0}, {"kv_capacity_tokens": 8}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be within"):
        Simulation(**options)


def test_numbers_of_numpy_and_of_a_command_line_are_taken() -> None:
    sim = Simulation(decode_ms="2", seed=np.int64(3), block_size=np.array(8), jitter=np.float32(0))
    assert sim.engine.info.details["decode_ms"] == "2"


def test_an_unknown_option_is_refused_by_name() -> None:
    told = r"simulator engine .* 'prefil_ms'; did you mean prefill_ms"
    with pytest.raises(TypeError, match=told):
        create("simulator", sink=lambda record: None, clock=VirtualClock(), prefil_ms=3.0)
