"""The engine through its child process and the kernel's loop: one started engine for all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from llmserve.core.clock import MonotonicClock
from llmserve.core.knobs import Knobs
from llmserve.core.types import Chunk, ParamError, Request, SamplingParams, StepRecord
from llmserve.engines.base import CachesPrefixes, EngineError
from llmserve.engines.registry import create
from llmserve.engines.torch.engine import TorchEngine
from llmserve.engines.torch.options import SPINS
from support.tiny_models import VOCAB, generate, reference

T = TypeVar("T")
PROMPT = (7, 99, 140, 31)


@dataclass
class Started:
    """A running engine, its loop and its steps so far."""

    engine: TorchEngine
    loop: asyncio.Runner
    steps: list[StepRecord] = field(default_factory=list)
    watch: Callable[[StepRecord], None] = lambda _: None

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        return self.loop.run(asyncio.wait_for(main, 60))

    def sink(self, record: StepRecord) -> None:
        self.steps.append(record)
        self.watch(record)

    async def until(self, condition: Callable[[StepRecord], bool]) -> StepRecord:
        """The next step that fulfils the condition."""
        found: asyncio.Future[StepRecord] = asyncio.get_running_loop().create_future()
        self.watch = lambda step: (
            found.set_result(step) if condition(step) and not found.done() else None
        )
        try:
            return await found
        finally:
            self.watch = lambda _: None

    async def collect(self, request: Request) -> list[Chunk]:
        chunks: list[Chunk] = []
        await self.engine.generate(request, chunks.append)
        return chunks


def request(id: str, prompt: tuple[int, ...] = PROMPT, **sampling: Any) -> Request:
    options = {"max_tokens": 8, "temperature": 0.0, **sampling}
    return Request(id=id, prompt_ids=prompt, sampling=SamplingParams(**options), arrival=0.0)


def tokens(chunks: list[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


@pytest.fixture(scope="module")
def started(llama: Path) -> Iterator[Started]:
    with asyncio.Runner() as loop:
        engine = create(
            "torch", sink=lambda record: one.sink(record), clock=MonotonicClock(), model=llama,
            dtype="float32", threads=1, max_num_seqs_ceiling=64,
        )
        assert isinstance(engine, TorchEngine)
        one = Started(engine, loop)
        one.run(engine.start())
        yield one
        one.run(engine.stop())


@pytest.fixture(autouse=True)
def usual_knobs(started: Started) -> None:
    started.run(started.engine.apply(Knobs()))


def test_info_says_what_was_started(started: Started, llama: Path) -> None:
    info = started.engine.info
    assert (info.engine, info.model_id, info.dtype) == ("torch", str(llama), "float32")
    assert info.max_model_len == 512
    assert info.vocab_size == VOCAB
    assert info.kv_capacity_tokens == 64 * 512  # all places at their longest: it is a tiny model
    assert info.ceilings == {"max_num_seqs": 64, "max_num_batched_tokens": 8192}
    assert info.details["threads"] == "1"
    assert info.details["chat template"] == "yes"
    assert psutil.Process(info.pids[0]).ppid() == os.getpid()


def test_replies_are_those_of_generate_and_whole(started: Started, llama: Path) -> None:
    given = [PROMPT, (9,), tuple(range(3, 60)), (200, 201)]

    async def all_at_once() -> list[list[Chunk]]:
        return await asyncio.gather(
            *(started.collect(request(f"e{i}", p, max_tokens=12)) for i, p in enumerate(given))
        )

    network = reference(llama)
    for prompt, chunks in zip(given, started.run(all_at_once()), strict=True):
        expected = generate(network, prompt, 12)
        assert tokens(chunks) == expected
        assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1].finish_reason in ("stop", "length")
        text = "".join(chunk.text for chunk in chunks)
        assert text.rstrip("\ufffd") == started.engine.tokenizer.decode(expected).rstrip("\ufffd")


def test_every_step_is_told_once_in_order(started: Started) -> None:
    started.run(started.collect(request("s", max_tokens=5, ignore_eos=True)))
    assert [step.index for step in started.steps] == list(range(len(started.steps)))
    mine = [step for step in started.steps if any(row.request_id == "s" for row in step.rows)]
    assert sum(step.prefill_tokens for step in mine) == len(PROMPT)
    assert sum(step.decode_tokens for step in mine) == 4  # the first comes with the prefill


def test_a_step_is_told_before_its_chunks(started: Started) -> None:
    async def read() -> None:
        before = len(started.steps)
        seen: list[int] = []

        def deliver(chunk: Chunk) -> None:
            seen.extend(chunk.token_ids)
            assert len(started.steps) - before >= len(seen)

        await started.engine.generate(request("b"), deliver)
        assert seen

    started.run(read())


def test_steps_are_timed_on_the_kernels_clock(started: Started) -> None:
    before = MonotonicClock().now()
    started.run(started.collect(request("t")))
    last = started.steps[-1]
    assert before < last.start_s < last.start_s + last.duration_s < MonotonicClock().now()


def test_knobs_are_adopted_when_idle_and_clamped(started: Started) -> None:
    applied = started.run(started.engine.apply(Knobs(max_num_seqs=1000)))
    assert applied.values.max_num_seqs == 64
    assert [(c.name, c.asked, c.got) for c in applied.clamped] == [("max_num_seqs", 1000, 64)]
    assert applied.changed == {"max_num_seqs": (32, 64)}
    assert applied.adopted_step == len(started.steps)


def test_knobs_take_effect_at_the_step_that_is_told(started: Started) -> None:
    async def retune() -> int | None:
        work = [
            asyncio.create_task(started.collect(request(f"k{i}", max_tokens=60, ignore_eos=True)))
            for i in range(4)
        ]
        await started.until(lambda step: step.running == 4)
        applied = await started.engine.apply(Knobs(max_num_seqs=2, max_num_batched_tokens=3))
        await asyncio.gather(*work)
        return applied.adopted_step

    adopted = started.run(retune())
    assert adopted is not None
    for step in started.steps[-80:]:
        assert (step.max_num_seqs == 2) == (step.index >= adopted)
        assert len(step.rows) <= 3 or step.index < adopted


def test_cancelling_frees_the_place_and_kv_within_one_step(started: Started) -> None:
    async def leave() -> StepRecord:
        stays = asyncio.create_task(
            started.collect(request("stays", max_tokens=450, ignore_eos=True))
        )
        goes = asyncio.create_task(
            started.collect(request("goes", max_tokens=500, ignore_eos=True))
        )
        await started.until(lambda step: len(step.rows) == 2)
        goes.cancel()
        step = await started.until(lambda step: step.running == 1)
        stays.cancel()
        await asyncio.wait([stays, goes])
        return step

    step = started.run(leave())
    assert [row.request_id for row in step.rows][-1:] == ["stays"]
    assert step.kv_used_tokens <= 512
    started.run(started.collect(request("after", max_tokens=1)))
    assert started.steps[-1].running == 0
    assert started.steps[-1].kv_used_tokens == 0


@pytest.mark.parametrize(
    "prompt", [(), (VOCAB,), (-1,), (5,) * 512], ids=["empty", "beyond", "negative", "too long"]
)
def test_a_bad_prompt_is_refused_and_touches_no_other(
    started: Started, llama: Path, prompt: tuple[int, ...]
) -> None:
    async def both() -> list[Chunk]:
        good = asyncio.create_task(started.collect(request("good")))
        with pytest.raises(ParamError):
            await started.collect(request("bad", prompt))
        return await good

    assert tokens(started.run(both())) == generate(reference(llama), PROMPT, 8)


@pytest.mark.parametrize(
    "sampling",
    [
        {"stop_token_ids": (VOCAB,), "min_tokens": 1}, {"stop_token_ids": (3, -1)},
        {"logit_bias": ((VOCAB, 1.0),)}, {"logit_bias": ((-1, 1.0),)},
    ],
)
def test_token_ids_beyond_the_vocabulary_are_refused_and_touch_no_other(
    started: Started, llama: Path, sampling: dict[str, Any]
) -> None:
    async def both() -> list[Chunk]:
        good = asyncio.create_task(started.collect(request("good")))
        with pytest.raises(ParamError) as refused:
            await started.collect(request("bad", **sampling))
        assert refused.value.param in sampling
        return await good

    assert tokens(started.run(both())) == generate(reference(llama), PROMPT, 8)


def test_a_prompt_seen_before_is_cached_until_it_is_reset(started: Started) -> None:
    prompt = tuple(range(30, 100))

    async def ask(id: str) -> list[Chunk]:
        return await started.collect(request(id, prompt, max_tokens=4, ignore_eos=True))

    assert isinstance(started.engine, CachesPrefixes)
    replies = [started.run(ask("p0")), started.run(ask("p1"))]
    assert [sum(chunk.cached_tokens for chunk in reply) for reply in replies] == [0, 64]
    assert started.steps[-4].cached_tokens == 64
    started.run(started.engine.reset_cache())
    replies.append(started.run(ask("p2")))
    assert sum(chunk.cached_tokens for chunk in replies[2]) == 0
    assert tokens(replies[0]) == tokens(replies[1]) == tokens(replies[2])


def test_the_same_id_twice_at_once_is_refused(started: Started) -> None:
    async def both() -> None:
        one = asyncio.create_task(started.collect(request("one", max_tokens=50)))
        await started.until(lambda step: step.running == 1)
        with pytest.raises(ParamError, match="already"):
            await started.collect(request("one"))
        one.cancel()
        await asyncio.wait([one])

    started.run(both())


def test_an_interrupt_of_the_kernels_group_does_not_reach_the_child(started: Started) -> None:
    (pid,) = started.engine.info.pids
    assert os.getpgid(pid) != os.getpgid(0)
    assert os.getsid(pid) != os.getsid(0)


def test_threads_and_waiting_are_set_in_the_child(started: Started) -> None:
    environment = psutil.Process(started.engine.info.pids[0]).environ()
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["GOMP_SPINCOUNT"] == str(SPINS["brief"])
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_before_its_start_an_engine_refuses_and_stops_quietly(started: Started) -> None:
    engine = TorchEngine(sink=lambda _: None, clock=MonotonicClock())

    async def attempt() -> None:
        await engine.stop()
        with pytest.raises(EngineError, match="not started"):
            await engine.generate(request("x"), lambda chunk: None)
        with pytest.raises(EngineError):
            await engine.apply(Knobs())

    started.run(attempt())
