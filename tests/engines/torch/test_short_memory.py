"""Memory that runs out: fewer run at a time, all replies are what they would have been, and what
cannot run even alone is told why."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmserve.engines.torch.kv.budget import kv_budget
from llmserve.engines.torch.kv.store import KvStore
from support.examples import examples
from support.scarce import WORDS, Scarce
from support.tiny_models import Drive, Driven, greedy, words

MAX_TOKENS = 12
expected = partial(greedy, max_tokens=MAX_TOKENS)

def ask(driven: Driven, name: str, prompt: tuple[int, ...], **sampling: Any) -> None:
    driven.submit(name, prompt, **{"max_tokens": MAX_TOKENS, "temperature": 0} | sampling)


def preempted(driven: Driven) -> int:
    return sum(len(step.record.preempted) for step in driven.steps if step.record)


def on(zeros: Scarce) -> Any:
    return partial(KvStore, zeros=zeros)


@given(
    lengths=st.lists(st.sampled_from([1, 5, 30, 60, 200, 250, 300]), min_size=1, max_size=9),
    shared=st.integers(0, 40),
    later=st.lists(st.integers(0, 5), min_size=9, max_size=9),
    slots=st.floats(1, 6),
    failing=st.lists(st.integers(1, 60), max_size=8),
)
@settings(
    max_examples=examples(25), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_whatever_allocation_fails_all_replies_are_those_of_enough_memory(
    llama: Path, drive: Drive, lengths: list[int], shared: int, later: list[int], slots: float,
    failing: list[int],
) -> None:
    """From room for the longest alone; and calls that fail though there is room."""
    driven = drive(llama)
    longest = 1024 * driven.runner.kv.geometry.token_bytes  # two slots of 256 tokens or one of 512
    zeros = Scarce(slots * longest, failing)
    driven = drive(llama, store=on(zeros), max_num_batched_tokens=130)
    prompts = [words(shared, 1)[:length] + words(length, length) for length in lengths]
    for i, (prompt, wait) in enumerate(zip(prompts, later, strict=False)):
        ask(driven, str(i), prompt)
        for _ in range(wait):
            driven.step()
    driven.finish()
    ended = [driven.end(str(i)) for i in range(len(prompts))]
    for i, (prompt, end) in enumerate(zip(prompts, ended, strict=True)):
        if end.finish_reason == "error":
            assert "kv_cache_memory_bytes" in (end.error or "")
        else:
            assert driven.tokens(str(i)) == expected(llama, prompt)
    assert sum(end.finish_reason == "error" for end in ended) <= len(failing)
    told = [step.record.index for step in driven.steps if step.record]
    assert told == [*range(len(told))]


@given(
    data=st.data(),
    blocks=st.integers(20, 140),
    size=st.sampled_from([4, 16]),
    together=st.sampled_from([3, 16, 64]),
)
@settings(
    max_examples=examples(25), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_kv_of_many_short_and_some_long_requests_stays_within_its_bytes(
    llama: Path, drive: Drive, data: st.DataObject, blocks: int, size: int, together: int
) -> None:
    """All of it, counted where it is allocated: slots that nobody has, copies while both exist and
    what is cached. And nobody fails for it."""
    geometry, zeros = drive(llama).runner.kv.geometry, Scarce()
    budget = kv_budget(blocks * size, geometry)
    driven = drive(
        llama, kv_blocks=blocks, block_size=size, max_num_seqs=together,
        store=partial(KvStore, zeros=zeros, budget=budget),
    )
    room = min(400, blocks * size - MAX_TOKENS)
    short, long = st.integers(1, min(24, room)), st.integers(1, room)
    lengths = data.draw(st.lists(short | short | short | long, min_size=1, max_size=40))
    prompts = [words(20, 1)[: i % 2 * length] + words(length, length)
               for i, length in enumerate(lengths)]
    prompts = [prompt[:room] for prompt in prompts]
    for i, prompt in enumerate(prompts):
        ask(driven, str(i), prompt)
        for _ in range(i % 3):
            driven.step()
    driven.finish()
    assert zeros.most <= budget
    for i, prompt in enumerate(prompts):
        assert driven.tokens(str(i)) == expected(llama, prompt)


def test_many_short_requests_run_at_once_in_the_room_of_their_tokens(
    llama: Path, drive: Drive
) -> None:
    """Each takes two blocks of 16; in slots of 256 sixteen of them would have filled the budget."""
    geometry = drive(llama).runner.kv.geometry
    budget = kv_budget(2048, geometry)
    driven = drive(
        llama, kv_blocks=128, block_size=16, store=partial(KvStore, budget=budget),
        prefix_caching=False, max_num_seqs=64,
    )
    for i in range(64):
        ask(driven, str(i), words(14, i))
    driven.finish()
    assert max(step.record.running for step in driven.steps if step.record) >= 48


def test_those_that_find_no_slot_wait_until_another_leaves(llama: Path, drive: Drive) -> None:
    token = drive(llama).runner.kv.geometry.token_bytes
    zeros = Scarce(4 * 256 * token)  # the first slab, and nothing to lay it anew
    driven = drive(llama, store=on(zeros), prefix_caching=False)
    for i in range(9):
        ask(driven, str(i), words(9, i))
    driven.finish()
    assert [driven.tokens(str(i)) for i in range(9)] == [
        expected(llama, words(9, i)) for i in range(9)
    ]
    assert zeros.refused <= 9, "who found no room came back before another left"
    assert max(step.record.running for step in driven.steps if step.record) == 4
    assert preempted(driven)


def test_one_that_outgrows_memory_for_a_copy_is_computed_anew(llama: Path, drive: Drive) -> None:
    token = drive(llama).runner.kv.geometry.token_bytes
    zeros = Scarce(1200 * token)  # 1024 for a slab of four slots of 256; 512 + 1024 are too many
    driven, prompt = drive(llama, store=on(zeros)), words(250, 1)
    ask(driven, "a", prompt)
    driven.finish()
    assert driven.tokens("a") == expected(llama, prompt)
    assert preempted(driven) == 1


def test_what_does_not_fit_alone_is_told_what_to_change(
    llama: Path, drive: Drive, capsys: pytest.CaptureFixture[str]
) -> None:
    token = drive(llama).runner.kv.geometry.token_bytes
    zeros = Scarce(1030 * token)
    driven = drive(llama, store=on(zeros), max_num_batched_tokens=999)
    given = {"a": words(9, 1), "long": words(260, 2), "b": words(9, 3)}
    for name, prompt in given.items():
        ask(driven, name, prompt)
    driven.finish()
    assert [driven.tokens(name) for name in given] == [expected(llama, p) for p in given.values()]
    zeros.limit = 500 * token
    ask(driven, "too long", words(260, 4))
    driven.finish()
    error = driven.end("too long").error or ""
    assert all(name in error for name in ("kv_cache_memory_bytes", "max_model_len", WORDS))
    assert "TooLarge" in capsys.readouterr().err


def narrow(driven: Driven, monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Forward passes of more rows than `most` find no memory; the sizes of all that were tried."""
    model, tried = driven.runner._model, list[int]()
    real = type(model).forward

    def forward(model: Any, batch: Any, tokens: list[int], wanted: list[int]) -> Tensor:
        tried.append(len(tokens))
        if len(tokens) > most:
            raise RuntimeError(f"{WORDS} much")
        return real(model, batch, tokens, wanted)

    monkeypatch.setattr(type(model), "forward", forward)
    return tried


@pytest.mark.parametrize("temperature", [0.0, 1.1])
def test_a_forward_pass_without_memory_is_run_with_half_of_the_requests(
    llama: Path, drive: Drive, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, driven = drive(llama), drive(llama, max_num_batched_tokens=64)
    for i in range(8):
        for its in (alone, driven):
            ask(its, str(i), words(5, i), temperature=temperature, seed=i)
        alone.finish()
    tried = narrow(driven, monkeypatch, 12)
    driven.step()
    assert tried == [40, 20, 10]
    driven.finish()
    for i in range(8):
        assert driven.tokens(str(i)) == alone.tokens(str(i))
    assert preempted(driven) >= 6


def test_a_forward_pass_without_memory_gives_up_what_is_cached_first(
    llama: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven, fails = drive(llama), [True]
    ask(driven, "a", words(40, 1))
    driven.finish()
    assert driven.runner.kv.shelved
    real = type(driven.runner._model).forward

    def forward(*given: Any) -> Tensor:
        if fails:
            fails.clear()
            raise MemoryError
        return real(*given)

    monkeypatch.setattr(type(driven.runner._model), "forward", forward)
    ask(driven, "b", words(40, 2))
    ask(driven, "c", words(40, 3))
    driven.step()
    assert not driven.runner.kv.shelved
    driven.finish()
    assert not preempted(driven)
    assert [driven.tokens(name) for name in "bc"] == [expected(llama, words(40, i)) for i in (2, 3)]


def test_a_forward_pass_without_memory_for_one_ends_that_one(
    llama: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    driven = drive(llama)
    tried = narrow(driven, monkeypatch, 20)
    for name, count in (("a", 9), ("wide", 30), ("b", 9)):
        ask(driven, name, words(count, count))
    driven.finish()
    assert driven.tokens("a") == driven.tokens("b") == expected(llama, words(9, 9))
    assert "max_num_batched_tokens" in (driven.end("wide").error or "")
    assert sum(count > 20 for count in tried) <= 6
    assert "TooLarge" in capsys.readouterr().err
