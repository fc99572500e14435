"""KV slabs: who lies where, and that nobody's contents are lost when others come and go."""

from __future__ import annotations

import random

import pytest
import torch

from llmserve.engines.torch.kv.store import (
    FEWEST_SLOTS,
    SHORTEST,
    SMALLEST,
    Geometry,
    KvStore,
    NoRoom,
)
from support.scarce import Scarce

GEOMETRY = Geometry(2, 1, 2, 3, torch.float32, torch.device("cpu"))


def write(kv: KvStore, owner: str, start: int, tokens: int, value: float) -> None:
    place = kv.place(owner)
    for cache in (place.slab.keys, place.slab.values):
        cache[:, place.slot, :, start : start + tokens] = value


def read(kv: KvStore, owner: str, tokens: int) -> set[float]:
    place = kv.place(owner)
    both = (place.slab.keys, place.slab.values)
    return {v for cache in both for v in cache[:, place.slot, :, :tokens].flatten().tolist()}


def test_the_sequences_of_a_slab_fill_its_first_slots() -> None:
    kv = KvStore(GEOMETRY)
    for owner in "abcde":
        kv.reserve(owner, 10, 0)
    kv.release("b")
    assert sorted(kv.place(owner).slot for owner in "acde") == [0, 1, 2, 3]
    kv.check()


def test_a_sequence_keeps_its_tokens_when_it_outgrows_its_slab() -> None:
    kv = KvStore(GEOMETRY)
    kv.reserve("a", SHORTEST, 0)
    write(kv, "a", 0, SHORTEST, 7.0)
    kv.reserve("a", SHORTEST + 1, SHORTEST)
    assert kv.place("a").slab.length == 2 * SHORTEST
    assert read(kv, "a", SHORTEST) == {7.0}
    kv.check()


def test_an_empty_store_holds_no_memory() -> None:
    kv = KvStore(GEOMETRY)
    for owner, tokens in (("a", 5), ("b", 300), ("c", 3000)):
        kv.reserve(owner, tokens, 0)
    for owner in "abc":
        kv.release(owner)
    assert kv._slabs == {}
    assert len(kv) == 0


def test_a_slab_shrinks_when_most_have_left() -> None:
    kv = KvStore(GEOMETRY)
    owners = [f"s{i}" for i in range(40)]
    for owner in owners:
        kv.reserve(owner, 9, 0)
    assert kv.place("s0").slab.slots >= 40
    for owner in owners[1:]:
        kv.release(owner)
        kv.check()
    assert kv.place("s0").slab.slots <= 4 * FEWEST_SLOTS


def held_tokens(kv: KvStore) -> int:
    return kv.held_bytes // GEOMETRY.token_bytes


@pytest.mark.parametrize("tokens", [200, 500, 1000, 4000, 30_000])
def test_few_long_sequences_take_no_room_for_many(tokens: int) -> None:
    """Rounded up to a power of two, and of long ones no slot is spare."""
    kv = KvStore(GEOMETRY)
    for count in range(1, 6):
        kv.reserve(f"s{count}", tokens, 0)
        rounded = count * max(SHORTEST, 1 << (tokens - 1).bit_length())
        assert held_tokens(kv) <= rounded + FEWEST_SLOTS * SHORTEST * (tokens < 1000)
    for count in range(1, 5):
        kv.release(f"s{count}")
    assert held_tokens(kv) <= max(2 * rounded // 5, 2 * FEWEST_SLOTS * SHORTEST)


def test_releasing_who_is_not_there_does_nothing() -> None:
    kv = KvStore(GEOMETRY)
    kv.reserve("a", 1, 0)
    kv.release("b")
    assert len(kv) == 1


@pytest.mark.parametrize("budget", [None, 3000, 12_000])
@pytest.mark.parametrize("seed", range(4))
def test_contents_survive_any_traffic(seed: int, budget: int | None) -> None:
    """Refusals included: nothing has changed then, and no copy ever took more than there is."""
    dice, zeros = random.Random(seed), Scarce()
    bound = None if budget is None else budget * GEOMETRY.token_bytes
    kv, refused = KvStore(GEOMETRY, budget=bound, zeros=zeros), 0
    stored: dict[str, tuple[int, float]] = {}
    for turn in range(120):
        action = dice.random()
        try:
            if action < 0.35 or not stored:
                owner, old = f"o{turn}", 0
                tokens = dice.choice([dice.randint(1, 40), dice.randint(1, 700)])
            elif action < 0.7:
                owner = dice.choice(list(stored))
                old = stored[owner][0]
                tokens = old + dice.randint(1, 400)
            else:
                owner = dice.choice(list(stored))
                del stored[owner]
                kv.release(owner)
                continue
            kv.reserve(owner, tokens, old)
        except NoRoom:
            refused += 1
        else:
            value = stored[owner][1] if old else float(turn + 1)
            write(kv, owner, old, tokens - old, value)
            stored[owner] = (tokens, value)
        kv.check()
        assert all(read(kv, o, tokens) == {value} for o, (tokens, value) in stored.items())
        assert zeros.held == kv.held_bytes
    assert bound is None or zeros.most <= bound
    assert bool(refused) == (budget == 3000) or budget == 12_000


def test_a_slab_that_there_is_no_room_to_copy_gets_another_beside_it() -> None:
    kv = KvStore(GEOMETRY, budget=10 * 512 * GEOMETRY.token_bytes)
    for i in range(10):
        kv.reserve(str(i), 500, 0)
        kv.check()
    assert kv.held_bytes == kv.budget
    assert len({id(kv.place(str(i)).slab) for i in range(10)}) > 1
    with pytest.raises(NoRoom):
        kv.reserve("more", 3, 0)
    for i in range(7):
        kv.release(str(i))
        kv.check()
    assert len({id(kv.place(str(i)).slab) for i in range(7, 10)}) == 1


def test_while_three_quarters_are_free_short_ones_lie_in_one_slab() -> None:
    kv = KvStore(GEOMETRY, budget=64 * SHORTEST * GEOMETRY.token_bytes)
    for i, tokens in enumerate([3, 60, 200, 17, 100]):
        kv.reserve(str(i), tokens, 0)
    assert {kv.place(str(i)).slab.length for i in range(5)} == {SHORTEST}
    for i in range(40):
        kv.reserve(f"later {i}", 9, 0)
    assert kv.place("later 39").slab.length == SMALLEST


def test_a_shelf_takes_no_more_than_there_is_room_for() -> None:
    kv = KvStore(GEOMETRY, budget=2 * SMALLEST * GEOMETRY.token_bytes)
    kv.reserve("a", SMALLEST, 0)
    kv.shelve(b"1", "a", 0, 8)
    kv.shelve(b"2", "a", 8, 8)
    with pytest.raises(NoRoom):
        kv.shelve(b"3", "a", 0, 8)
    kv.forget(b"1")
    kv.forget(b"1")
    kv.shelve(b"3", "a", 0, 8)
    assert kv.held_bytes == kv.budget


def test_a_slab_that_there_is_no_room_to_shrink_stays_as_large() -> None:
    zeros = Scarce()
    kv = KvStore(GEOMETRY, zeros=zeros)
    for i in range(10):
        kv.reserve(str(i), 500, 0)
    kv.budget = zeros.most = kv.held_bytes
    for i in range(9):
        kv.release(str(i))
    assert zeros.most == kv.budget == kv.held_bytes
    kv.release("9")
    assert kv.held_bytes == 0
