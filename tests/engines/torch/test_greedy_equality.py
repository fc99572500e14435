"""Greedy output is `model.generate`'s, token for token, whatever else was in the batch."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from support.tiny_models import VOCAB, Drive, Driven, greedy

MAX_TOKENS = 24
expected = partial(greedy, max_tokens=MAX_TOKENS)


def prompts(count: int, longest: int = 60, seed: int = 0) -> list[tuple[int, ...]]:
    dice = random.Random(seed)
    return [
        tuple(dice.randrange(3, VOCAB) for _ in range(dice.randint(1, longest)))
        for _ in range(count)
    ]


@pytest.fixture(params=["compact", "general"])
def drive(request: pytest.FixtureRequest, drive: Drive) -> Drive:
    """Both ways to compute the same."""
    return partial(drive, forward=request.param)


@pytest.fixture(params=["llama", "qwen2"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def assert_equal(driven: Driven, folder: Path, given: list[tuple[int, ...]]) -> None:
    replies = [driven.tokens(f"r{i}") for i in range(len(given))]
    assert replies == [expected(folder, prompt) for prompt in given]


def submit_all(driven: Driven, given: list[tuple[int, ...]]) -> None:
    for i, prompt in enumerate(given):
        driven.submit(f"r{i}", prompt, max_tokens=MAX_TOKENS, temperature=0)


def test_the_reference_itself_says_various_things(folder: Path) -> None:
    replies = [expected(folder, prompt) for prompt in prompts(8)]
    assert len({tuple(reply) for reply in replies}) == 8
    assert all(len(set(reply)) > 5 for reply in replies)


def test_one_sequence_alone(folder: Path, drive: Drive) -> None:
    driven, given = drive(folder), prompts(1)
    submit_all(driven, given)
    driven.finish()
    assert_equal(driven, folder, given)


def test_ragged_prompts_together(folder: Path, drive: Drive) -> None:
    driven, given = drive(folder), prompts(12)
    submit_all(driven, given)
    driven.finish()
    assert_equal(driven, folder, given)
    assert max(step.record.running for step in driven.steps if step.record) >= 11


def test_arrivals_in_mid_flight(folder: Path, drive: Drive) -> None:
    driven, given = drive(folder, max_num_seqs=6), prompts(14, seed=1)
    dice = random.Random(2)
    for i, prompt in enumerate(given):
        driven.submit(f"r{i}", prompt, max_tokens=MAX_TOKENS, temperature=0)
        for _ in range(dice.randint(0, 7)):
            driven.step()
    driven.finish()
    assert_equal(driven, folder, given)


def test_preemption_and_recomputation(folder: Path, drive: Drive) -> None:
    given = prompts(9, longest=30, seed=3)
    driven = drive(folder, kv_blocks=36, block_size=4)  # 144 tokens, for up to 9 × 70
    submit_all(driven, given)
    driven.finish()
    assert_equal(driven, folder, given)
    preempted = [who for step in driven.steps if step.record for who in step.record.preempted]
    assert len(preempted) > 3, "the case did not preempt"


def test_prompts_computed_in_chunks(folder: Path, drive: Drive) -> None:
    given = prompts(8, longest=90, seed=4)
    driven = drive(folder, max_num_batched_tokens=11, long_prefill_token_threshold=7)
    submit_all(driven, given)
    driven.finish()
    assert_equal(driven, folder, given)
    records = [step.record for step in driven.steps if step.record]
    assert any(r.prefill_tokens and r.decode_tokens for r in records), "nothing was mixed"
    assert all(r.prefill_tokens + r.decode_tokens <= 11 for r in records)


def test_more_sequences_than_tokens_in_the_budget(folder: Path, drive: Drive) -> None:
    given = prompts(7, longest=12, seed=5)
    driven = drive(folder)
    submit_all(driven, given)
    for _ in range(3):
        driven.step()
    driven.retune(max_num_batched_tokens=3)
    driven.finish()
    assert_equal(driven, folder, given)


def test_knobs_changed_in_mid_run(folder: Path, drive: Drive) -> None:
    given = prompts(12, seed=6)
    driven = drive(folder, kv_blocks=80)
    submit_all(driven, given)
    changes: list[dict[str, object]] = [
        {"max_num_seqs": 3}, {"max_num_batched_tokens": 5}, {"batching": "static"},
        {"long_prefill_token_threshold": 4}, {"batching": "none"}, {},
    ]
    for change in changes:
        for _ in range(9):
            driven.step()
        driven.retune(**change)
    driven.finish()
    assert_equal(driven, folder, given)


def test_sequences_that_outgrow_their_slab(llama: Path, drive: Drive) -> None:
    given = [prompt + (5,) * (230 - len(prompt)) for prompt in prompts(5, seed=7)]
    given += prompts(3, seed=8)
    driven = drive(llama)
    submit_all(driven, given)
    driven.finish()
    assert_equal(driven, llama, given)


def test_others_that_leave_disturb_nobody(llama: Path, drive: Drive) -> None:
    given = prompts(10, seed=9)
    driven = drive(llama)
    submit_all(driven, given)
    for gone in (3, 0, 7, 8):
        driven.step()
        driven.step()
        driven.abort(f"r{gone}")
    driven.finish()
    for i in {*range(10)} - {3, 0, 7, 8}:
        assert driven.tokens(f"r{i}") == expected(llama, given[i])


@pytest.mark.parametrize("seed", range(4))
def test_any_schedule(llama: Path, drive: Drive, seed: int) -> None:
    """Arrivals, departures, budgets, caps, modes and a KV that runs short, all at random."""
    dice = random.Random(100 + seed)
    driven = drive(llama, kv_blocks=dice.choice([40, 60, 400]))
    given = prompts(16, longest=70, seed=200 + seed)
    gone: set[int] = set()
    for i, prompt in enumerate(given):
        driven.submit(f"r{i}", prompt, max_tokens=MAX_TOKENS, temperature=0)
        for _ in range(dice.randint(0, 5)):
            driven.step()
        if dice.random() < 0.4:
            driven.retune(
                max_num_seqs=dice.randint(1, 9),
                max_num_batched_tokens=dice.choice([2, 9, 33, 500]),
                long_prefill_token_threshold=dice.choice([0, 0, 6]),
                batching=dice.choice(["continuous", "continuous", "static", "none"]),
            )
        if dice.random() < 0.15:
            gone.add(i)
            driven.abort(f"r{i}")
    driven.finish()
    for i, prompt in enumerate(given):
        if i not in gone:
            assert driven.tokens(f"r{i}") == expected(llama, prompt)


def test_sampling_neighbours_change_nothing(llama: Path, drive: Drive) -> None:
    given = prompts(4, seed=10)
    driven = drive(llama)
    submit_all(driven, given)
    for i in range(5):
        driven.submit(
            f"s{i}", given[0], max_tokens=25, temperature=1.3, top_p=0.8, presence_penalty=1.0
        )
    driven.finish()
    assert_equal(driven, llama, given)
