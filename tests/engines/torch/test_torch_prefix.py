"""Prefix caching on a real model: the same replies, less computed."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmserve.engines.process.messages import Adopted, ResetCache
from support.tiny_models import Drive, Driven, greedy, words

MAX_TOKENS = 16
expected = partial(greedy, max_tokens=MAX_TOKENS)


@pytest.fixture(params=["compact", "general"])
def drive(request: pytest.FixtureRequest, drive: Drive) -> Drive:
    """Both ways to compute the same."""
    return partial(drive, forward=request.param)


def family(count: int, seed: int) -> list[tuple[int, ...]]:
    """Prompts that share beginnings of all lengths, some of them the same."""
    dice = random.Random(seed)
    heads = [words(70, seed * 10 + i) for i in range(2)]
    tails = [words(n, n) for n in (0, 0, 1, 9)]
    return [
        dice.choice(heads)[: dice.randint(1, 70)] + dice.choice(tails) for _ in range(count)
    ]


def ask(driven: Driven, name: str, prompt: tuple[int, ...], **sampling: Any) -> None:
    driven.submit(name, prompt, **{"max_tokens": MAX_TOKENS, "temperature": 0} | sampling)


def computed(driven: Driven) -> int:
    return sum(step.record.prefill_tokens for step in driven.steps if step.record)


def cached(driven: Driven) -> int:
    return sum(step.record.cached_tokens for step in driven.steps if step.record)


def test_a_second_request_computes_what_lies_beyond_the_known_blocks(
    llama: Path, drive: Drive
) -> None:
    driven, prompt = drive(llama), words(50, 0)
    for name in ("first", "second"):
        ask(driven, name, prompt)
        driven.finish()
        assert driven.tokens(name) == expected(llama, prompt)
    assert [driven.deltas[name][0].cached_tokens for name in ("first", "second")] == [0, 48]
    assert not any(delta.cached_tokens for delta in driven.deltas["second"][1:])
    assert (computed(driven), cached(driven)) == (52, 48)


def test_the_next_turn_of_a_conversation_finds_prompt_and_reply(llama: Path, drive: Drive) -> None:
    driven, prompt = drive(llama), words(21, 1)
    ask(driven, "first", prompt)
    driven.finish()
    follow = (*prompt, *driven.tokens("first"), *words(5, 2))
    ask(driven, "second", follow)
    driven.finish()
    assert driven.tokens("second") == expected(llama, follow)
    assert driven.deltas["second"][0].cached_tokens == 36  # of 21 + 16 - 1 that were stored


@pytest.mark.parametrize("seed", range(6))
def test_any_schedule_says_the_same(llama: Path, drive: Drive, seed: int) -> None:
    """Arrivals, departures, chunks, resets, and a KV that runs short, all at random."""
    dice = random.Random(seed)
    driven = drive(llama, kv_blocks=[30, 30, 60, 60, 400, 400][seed], max_num_batched_tokens=60)
    given, gone = family(20, seed), set[int]()
    for i, prompt in enumerate(given):
        ask(driven, f"r{i}", prompt)
        for _ in range(dice.choice([0, 0, 2, 9])):
            driven.step()
        if dice.random() < 0.3:
            driven.retune(
                max_num_seqs=dice.randint(1, 9), max_num_batched_tokens=dice.choice([9, 33, 500]),
                long_prefill_token_threshold=dice.choice([0, 0, 6]),
            )
        if dice.random() < 0.15:
            gone.add(i)
            driven.abort(f"r{i}")
        if dice.random() < 0.05:
            driven.runner.handle(ResetCache(1))
            driven.runner.check()
    driven.finish()
    for i, prompt in enumerate(given):
        if i not in gone:
            assert driven.tokens(f"r{i}") == expected(llama, prompt)
    assert cached(driven) > 100, "the case shared little"


def test_the_schedules_with_little_room_preempt_and_evict(llama: Path, drive: Drive) -> None:
    driven, given = drive(llama, kv_blocks=30), family(20, 0)
    for i, prompt in enumerate(given):
        ask(driven, str(i), prompt)
    driven.finish()
    assert any(step.record and step.record.preempted for step in driven.steps)
    assert [driven.tokens(str(i)) for i in range(20)] == [expected(llama, p) for p in given]
    assert len(driven.runner.planner.pool.shelved) <= 30


def test_sequences_of_other_lengths_of_slab_share_too(llama: Path, drive: Drive) -> None:
    driven, head = drive(llama), words(240, 3)
    given = [head, head + words(40, 4), head[:200] + words(3, 5)]
    for i, prompt in enumerate(given):
        ask(driven, str(i), prompt)
        driven.step()  # the next comes while this one runs, in a slab of 256 or 512
    driven.finish()
    assert [driven.tokens(str(i)) for i in range(3)] == [expected(llama, p) for p in given]
    assert cached(driven) == 240 + 200


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_choices_of_one_prompt_share_its_computation_and_are_what_each_alone_would_be(
    llama: Path, drive: Drive, temperature: float
) -> None:
    prompt = words(61, 6)
    together, apart = drive(llama), drive(llama, prefix_caching=False)
    for i in range(4):
        for driven in (together, apart):
            ask(driven, str(i), prompt, temperature=temperature, seed=9 + i)
        apart.finish()
    together.finish()
    replies = [together.tokens(str(i)) for i in range(4)]
    assert replies == [apart.tokens(str(i)) for i in range(4)]
    assert len({tuple(reply) for reply in replies}) == (4 if temperature else 1)
    assert computed(apart) == 4 * 61
    assert computed(together) == 61 + 3 * 1


def test_forgotten_prefixes_are_computed_again_and_their_memory_is_free(
    llama: Path, drive: Drive
) -> None:
    driven, prompt = drive(llama), words(40, 7)
    ask(driven, "a", prompt)
    driven.finish()
    assert driven.runner.kv.shelved
    assert driven.runner.handle(ResetCache(5)) == Adopted(5, len(driven.steps))
    assert not driven.runner.kv.shelved
    ask(driven, "b", prompt)
    driven.finish()
    assert driven.deltas["b"][0].cached_tokens == 0
    assert driven.tokens("b") == driven.tokens("a")


@pytest.mark.parametrize("where", ["fill", "shelve"])
def test_memory_that_runs_out_in_a_copy_costs_the_cache_and_nothing_else(
    llama: Path, drive: Drive, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven, prompt = drive(llama), words(40, 8)
    ask(driven, "a", prompt)
    driven.finish()
    real = getattr(driven.runner.kv, where)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(driven.runner.kv, where, fail)
    ask(driven, "b", (*prompt, *words(9, 9)))
    driven.step()
    assert bool(driven.runner.kv.shelved) == (where == "shelve")  # that fails when b leaves
    driven.finish()
    monkeypatch.setattr(driven.runner.kv, where, real)
    assert driven.tokens("b") == expected(llama, (*prompt, *words(9, 9)))
    known = len(prompt) // driven.runner.planner.pool.block_size
    assert (len(driven.runner.kv.shelved) > known) == (where == "fill"), "what b left is known"
    ask(driven, "c", prompt)
    ask(driven, "d", prompt)
    driven.finish()
    assert driven.tokens("c") == driven.tokens("d") == expected(llama, prompt)
