"""A faster form that is proven while the plain one serves: taken between two steps, once proven."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmserve.core.clock import MonotonicClock
from llmserve.core.knobs import Knobs
from llmserve.core.types import Chunk, Request, SamplingParams
from llmserve.engines.batching.step_planner import StepPlanner
from llmserve.engines.torch import late_form
from llmserve.engines.torch.engine import TorchEngine
from llmserve.engines.torch.kv.store import KvStore
from llmserve.engines.torch.late_form import LateForm
from llmserve.engines.torch.model import compact_llama, open_model, select_forward
from llmserve.engines.torch.model.compact_llama import Compact
from llmserve.engines.torch.model.flat_model import General
from llmserve.engines.torch.model.open_model import OpenedModel
from llmserve.engines.torch.options import parse
from llmserve.engines.torch.step_loop import StepLoop
from llmserve.engines.torch.text.detokenize import Detokenizer
from llmserve.engines.torch.text.tokenizer import open_tokenizer
from support.tiny_models import Driven, greedy, words

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's, and empty."""
    base = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))
    return base


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set, it lets the proof end."""
    through, prove = threading.Event(), open_model.prove

    def held(*rest: Any) -> OpenedModel:
        assert through.wait(PATIENCE_S)
        return prove(*rest)

    monkeypatch.setattr(late_form, "prove", held)
    yield through
    through.set()


def opened(folder: Path, **options: object) -> OpenedModel:
    given = {"model": folder, "dtype": "float32", "device": "cpu", "threads": 1, **options}
    return open_model.open_model(parse(given), plain_first=True)


def driven(found: OpenedModel, folder: Path) -> Driven:
    model = found.model
    planner = StepPlanner(
        kv_blocks=4096, block_size=4, max_model_len=model.max_model_len, prefix_caching=True
    )
    detokenizer = Detokenizer(open_tokenizer(folder).backend)
    kv = KvStore(model.geometry)
    return Driven(StepLoop(model, detokenizer, planner, Knobs(), seed=1, kv=kv))


class Proving:
    """The worker's part: asked between steps, woken by the proof's thread."""

    def __init__(self, found: OpenedModel) -> None:
        assert found.unproven is not None
        self.woken = threading.Event()
        self.late = LateForm(found.unproven, lambda _: None, self.woken.set)
        self.late.begin()

    def settled(self, runner: StepLoop) -> dict[str, str]:
        """Once it is, with no step in between."""
        while (details := self.late.settle(runner)) is None:
            if not self.late.asks(runner):
                assert self.woken.wait(PATIENCE_S)
                self.woken.clear()
        return details


def test_the_plain_form_serves_and_a_reply_goes_on_in_the_proven_one(
    llama: Path, gate: threading.Event
) -> None:
    found = opened(llama)
    assert isinstance(found.model.compute, General)
    assert found.proof.startswith("being made")
    run, prompts = driven(found, llama), [words(5 + 9 * i, seed=i) for i in range(4)]
    network = weakref.ref(found.model.network)
    proving = Proving(found)
    for i, prompt in enumerate(prompts[:3]):
        run.submit(str(i), prompt, max_tokens=16, temperature=0)
        for _ in range(3):
            assert run.step()
            assert proving.late.settle(run.runner) is None
    assert isinstance(found.model.compute, General)
    gate.set()
    details = proving.settled(run.runner)
    assert isinstance(found.model.compute, Compact)
    assert details["forward"] == "compact, joined products"
    assert details["proof"].startswith("made at this start in ")
    assert "kept for the next one; the plain form served for " in details["proof"]
    run.submit("3", prompts[3], max_tokens=16, temperature=0)
    run.finish()
    for i, prompt in enumerate(prompts):
        assert run.tokens(str(i)) == greedy(llama, prompt, 16)
    gc.collect()
    assert network() is None, "transformers' network stays in memory"
    again = opened(llama)
    assert again.proof.startswith("kept from an earlier start")
    assert again.unproven is None


@pytest.mark.parametrize(
    "options", [{"forward": "compact"}, {"quantization": "int8"}, {"forward": "plain"}], ids=str
)
def test_what_was_insisted_on_or_says_other_things_is_proven_first(
    options: dict[str, object], llama: Path
) -> None:
    assert opened(llama, **options).unproven is None


def test_where_memory_is_short_the_form_is_proven_first(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 * opened(llama).model.parameters
    for free, first in ((2 * size + 1, True), (2 * size, False)):
        monkeypatch.setattr(open_model, "free_bytes", lambda _, free=free: free)
        found = opened(llama, seed=1)
        assert (found.unproven is not None) == first
    assert isinstance(found.model.compute, Compact)


def test_in_half_precision_the_change_waits_until_nothing_runs(
    llama: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(llama, dtype="bfloat16")
    run = driven(found, llama)
    proving = Proving(found)
    run.submit("long", words(30, 1), max_tokens=30, temperature=0, ignore_eos=True)
    assert run.step()
    gate.set()
    while not proving.late._over.is_set():  # the race asks for its moment
        proving.late.settle(run.runner)
        proving.woken.wait(0.05)
    while run.step():
        if not run.runner.idle:
            assert proving.late.settle(run.runner) is None
            assert not proving.late.asks(run.runner)
    assert run.runner.kv.shelved
    assert "forward" in proving.settled(run.runner)
    assert not run.runner.kv.shelved, "what the other form computed is still there"
    run.runner.check()


def test_in_half_precision_it_does_not_wait_for_ever(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_form, "LATEST_S", 0.0)
    found = opened(llama, dtype="bfloat16")
    run = driven(found, llama)
    run.submit("long", words(30, 1), max_tokens=30, temperature=0, ignore_eos=True)
    assert run.step()
    assert "forward" in Proving(found).settled(run.runner)
    assert not run.runner.idle
    run.finish()
    assert len(run.tokens("long")) == 30


def test_what_is_timed_is_timed_while_no_step_runs(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread waits in `settle` for as long as the trial takes."""
    inside, seen = threading.Event(), list[bool]()

    def wide_rows(_: torch.dtype) -> None:
        seen.append(inside.is_set())

    monkeypatch.setattr(select_forward, "wide_rows", wide_rows)
    found = opened(llama)
    run, proving = driven(found, llama), Proving(found)
    while True:
        inside.set()
        details = proving.late.settle(run.runner)
        inside.clear()
        if details is not None:
            break
        if not proving.late.asks(run.runner):
            assert proving.woken.wait(PATIENCE_S)
            proving.woken.clear()
    assert seen
    assert all(seen)


def test_where_no_faster_form_is_right_the_general_one_is_taken(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact_llama, "silu", torch.nn.functional.gelu)
    found = opened(llama)
    run = driven(found, llama)
    details = Proving(found).settled(run.runner)
    assert details["forward"] == "transformers' modelling code, products packed"
    assert details["proof"].startswith("made at each start")
    run.submit("0", words(9, 1), max_tokens=16, temperature=0)
    run.finish()
    assert run.tokens("0") == greedy(llama, words(9, 1), 16)


def test_a_proof_that_breaks_leaves_the_plain_form(
    llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> OpenedModel:
        raise MemoryError("no room for it")

    monkeypatch.setattr(late_form, "prove", broken)
    found = opened(llama)
    run = driven(found, llama)
    details = Proving(found).settled(run.runner)
    assert details == {"proof": "made at each start; it failed at this one"}
    assert "no room for it" in capsys.readouterr().err
    run.submit("0", words(9, 1), max_tokens=16, temperature=0)
    run.finish()
    assert run.tokens("0") == greedy(llama, words(9, 1), 16)


async def reply(engine: TorchEngine, name: str) -> list[int]:
    chunks: list[Chunk] = []
    sampling = SamplingParams(max_tokens=16, temperature=0.0)
    request = Request(id=name, prompt_ids=words(9, 1), sampling=sampling, arrival=0.0)
    await engine.generate(request, chunks.append)
    return [token for chunk in chunks for token in chunk.token_ids]


def test_an_engine_says_when_it_computes_in_the_proven_form(llama: Path) -> None:
    async def main() -> None:
        engine = TorchEngine(
            sink=lambda _: None, clock=MonotonicClock(), model=llama, threads=1, dtype="float32"
        )
        for start in range(2):
            await engine.start()
            told = engine.info.details["proof"]
            if start:
                assert told.startswith("kept from an earlier start")
            number = 0
            while "being made" in engine.info.details["proof"]:
                assert await reply(engine, str(number)) == greedy(llama, words(9, 1), 16)
                number += 1
            assert engine.info.details["forward"] == "compact, joined products"
            assert await reply(engine, "after") == greedy(llama, words(9, 1), 16)
            await engine.stop()

    asyncio.run(asyncio.wait_for(main(), 120))
