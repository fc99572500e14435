"""Prefix caching in the planner: what counts as known, how long, and who waits for whom.

Blocks are of 4 tokens and the Stepper draws 7s.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmserve.engines.batching.block_pool import BlockPool
from llmserve.engines.batching.prefix_cache import Drop, Keep, Reuse, next_keys
from support.stepping import Stepper


def run(**options: object) -> Stepper:
    return Stepper(prefix_caching=True, **options)  # type: ignore[arg-type]  # its own keywords


def next_key(before: bytes, tokens: list[int]) -> bytes:
    """Of one block."""
    return next_keys(before, tokens, len(tokens))[0]


def cached(stepper: Stepper) -> int:
    return stepper.last.cached_tokens


def test_a_prompt_seen_before_costs_only_what_lies_beyond_its_full_blocks() -> None:
    one = run()
    one.say("a", range(10))
    assert one.step() == {"a": "p10>"}
    one.say("b", range(10))
    assert one.step() == {"b": "p2>"}
    assert cached(one) == 8
    assert one.planner.record(one.last, 0, 0.0, 0.0).cached_tokens == 8


def test_the_last_token_is_computed_even_where_every_block_is_known() -> None:
    one = run()
    one.say("a", range(8))
    one.step()
    b = one.say("b", range(8))
    assert one.step() == {"b": "p4>"}  # as vLLM: a full block less, not a token
    assert b.cached == 4


def test_only_the_same_tokens_from_the_very_start_are_a_hit() -> None:
    one = run()
    one.say("a", [1, 2, 3, 4, 5, 6, 7, 8, 9])
    one.step()
    for id, prompt in (
        ("other head", [9, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("moved", [5, 6, 7, 8, 1, 2, 3, 4, 9]),
        ("shifted", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ):
        one.say(id, prompt)
        assert one.step() == {id: "p9>"}
    one.say("other tail", [1, 2, 3, 4, 5, 6, 7, 0, 9])
    assert one.step() == {"other tail": "p5>"}


def test_keys_tell_apart_what_a_concatenation_would_not() -> None:
    keys = {next_key(before, tokens) for before in (b"", next_key(b"", [0])) for tokens in (
        [0], [0, 0], [1], [256], [1, 0], [0, 1], [2**40], [257],
    )}
    assert len(keys) == 16


def test_a_reply_is_known_too() -> None:
    one = run()
    one.say("a", range(6), max_tokens=7)
    one.steps()
    one.say("b", [*range(6), *[7] * 7])  # the next turn of a conversation
    assert one.step() == {"b": "p1>"}
    assert cached(one) == 12


def test_what_runs_is_shared_as_soon_as_it_is_computed() -> None:
    one = run()
    one.say("a", range(9), max_tokens=20)
    one.step()
    one.say("b", range(9), max_tokens=20)
    assert one.step() == {"a": "d1>", "b": "p1>"}
    assert not one.planner.pool.shelved
    assert len({block for seq in one.planner.running for block in seq.blocks}) == 6


def test_those_that_come_together_compute_their_prompt_once() -> None:
    one = run()
    for id in "abc":
        one.say(id, range(18), max_tokens=3)
    assert one.step() == {"a": "p18>"}
    assert one.reasons == {"b": "prefix", "c": "prefix"}
    assert one.step() == {"a": "d1>", "b": "p2>", "c": "p2>"}
    assert cached(one) == 32


def test_nobody_waits_for_a_small_part_of_its_prompt() -> None:
    one = run()
    one.say("a", range(12))
    one.say("b", [*range(4), *range(50, 60)])
    assert one.step() == {"a": "p12>", "b": "p14>"}


def test_who_waits_for_a_prompt_goes_on_alone_when_its_owner_leaves() -> None:
    one = run(knobs={"max_num_batched_tokens": 8})
    one.say("a", range(40))
    one.say("b", range(40))
    assert one.step() == {"a": "p8"}
    assert one.step() == {"a": "p8"}
    one.planner.remove("a")
    assert one.step() == {"b": "p8"}
    assert cached(one) == 16  # what was computed until then is kept


def test_after_a_preemption_only_what_was_lost_is_computed_again() -> None:
    one = run(kv_blocks=5)
    old, young = one.say("old", range(7), 8), one.say("young", range(50, 58), 4)
    while not young.preemptions:
        one.step()
    assert len(one.planner.pool.shelved) < 3
    known = len(young.tokens)
    while not young.computed:
        rows = one.step()
    assert old.preemptions == 0
    assert 0 < cached(one) < known
    assert rows["young"] == f"p{known - cached(one)}>"


def test_what_is_cached_is_room_all_the_same() -> None:
    one = run(kv_blocks=4)
    one.say("a", range(16))
    one.step()
    assert len(one.planner.pool.shelved) == 4
    assert (one.planner.kv_used_blocks, one.planner.pool.free) == (0, 4)
    one.say("b", range(50, 66))
    assert one.step() == {"b": "p16>"}
    assert not one.planner.running
    one.say("a again", range(16))
    assert one.step() == {"a again": "p16>"}


def test_the_least_recently_used_goes_first_and_of_one_prompt_its_end() -> None:
    one = run(kv_blocks=6)
    for id, start in (("a", 0), ("b", 100), ("c", 200)):
        one.say(id, range(start, start + 8))
        one.step()
    one.planner.take_moves()
    one.say("a again", range(8))
    assert one.step() == {"a again": "p4>"}
    one.say("d", range(300, 308))
    one.step()
    dropped = [move.key for move in one.planner.take_moves() if isinstance(move, Drop)]
    heads = [next_key(b"", list(range(start, start + 4))) for start in (0, 100, 200)]
    a, b, c = heads
    ends = [next_key(head, list(range(100 * i + 4, 100 * i + 8))) for i, head in enumerate(heads)]
    assert dropped == [ends[0], ends[1], b]
    assert {a, c} <= set(one.planner.pool.shelved)


def test_a_blocks_kv_is_copied_before_it_is_forgotten() -> None:
    one = run(kv_blocks=3)
    one.say("a", range(12))
    one.step()
    one.planner.take_moves()
    one.say("b", range(12))  # needs all three blocks, and two of them are its source
    assert one.step() == {"b": "p4>"}
    kinds = [type(move) for move in one.planner.take_moves()]
    assert kinds[:2] == [Reuse, Drop]
    assert Keep in kinds[2:]


def test_what_cannot_be_trusted_is_not_kept() -> None:
    one = run()
    one.say("a", range(9), max_tokens=9)
    one.step()
    one.planner.remove("a", keep=False)
    assert not one.planner.pool.shelved


def test_a_reset_forgets_all_but_what_runs() -> None:
    one = run()
    one.say("gone", range(9))
    one.step()
    one.say("runs", range(50, 59), max_tokens=9)
    one.step()
    one.planner.reset_cache()
    one.planner.check()
    one.say("gone again", range(9))
    one.say("runs too", range(50, 59))
    assert one.step() == {"runs": "d1>", "gone again": "p9>", "runs too": "p1>"}


def test_switched_off_nothing_is_kept_or_shared() -> None:
    one = Stepper(prefix_caching=False)
    for id in "ab":
        one.say(id, range(9))
    assert one.step() == {"a": "p9>", "b": "p9>"}
    assert not one.planner.pool.shelved
    assert one.planner.take_moves() == []
    assert cached(one) == 0


@given(st.lists(st.integers(0, 30), max_size=80))
def test_shelved_blocks_go_out_in_the_order_of_their_use(acts: list[int]) -> None:
    """Against a plain list of keys: odd numbers use a key, even ones take that many blocks."""
    pool, order = BlockPool(6, 1), list[bytes]()
    for act in acts:
        key = bytes([act])
        if act % 2 and not pool.touch(key):
            held: list[int] = []
            lost = pool.take(held, 1)
            assert lost == ([order.pop(0)] if len(order) == 6 else [])
            pool.shelve(key, held.pop())
            order.append(key)
        elif act % 2:
            order.remove(key)
            order.append(key)
        else:
            held = []
            plain = 6 - len(order)
            lost = pool.take(held, act % 7)
            assert lost == [order.pop(0) for _ in range(max(0, act % 7 - plain))]
            pool.give_back(held)
        assert list(pool.shelved) == order
        pool.check([])
