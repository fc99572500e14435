"""The fused step: the logits of transformers for any mix of rows, the same bits in any company."""

from __future__ import annotations

import functools
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llmserve.engines.torch.cpu_kernels import limits, plan
from llmserve.engines.torch.cpu_kernels.kernel import FusedRows
from llmserve.engines.torch.kv.store import Geometry, KvStore, Place, Slab
from llmserve.engines.torch.model.weights import Weights
from support.fused_drive import KINDS, MOST_ROWS, MOST_TOKENS, Drive, Model

pytestmark = pytest.mark.timeout(400)  # the first one compiles the kernels

NEAR = 2e-3
"""Of the logits' length: a key's rounding may fall the other way."""


@pytest.fixture(scope="module")
def models() -> Callable[[str], Model]:
    return functools.cache(Model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels are not kept where the user's are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def drive(models: Callable[[str], Model], folder: None) -> Iterator[Callable[..., Drive]]:
    opened: list[FusedRows] = []

    def make(kind: str = "grouped queries", threads: int = 2) -> Drive:
        model = models(kind)
        opened.append(
            FusedRows(model.weights, most_rows=MOST_ROWS, most_tokens=MOST_TOKENS, threads=threads)
        )
        return Drive(model, opened[-1])

    yield make
    for rows in opened:
        rows.stop()


def off(mine: Tensor, its: Tensor) -> float:
    """The largest of a row, relative."""
    return float(((mine - its).norm(dim=-1) / its.norm(dim=-1)).max())


def slab(geometry: Geometry) -> Slab:
    kv = KvStore(geometry)
    kv.reserve("somebody", 1, 0)
    return kv.place("somebody").slab


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_decodes_in_one_step_have_the_logits_of_transformers(
    kind: str, drive: Callable[..., Drive]
) -> None:
    driven = drive(kind)
    lengths = {"begins": 41, "goes on": 90, "decodes": 33, "decodes too": 7, "is one": 1}
    for owner, length in lengths.items():
        driven.add(owner, length)
    first = driven.step(("goes on", 0, 30), ("decodes", 0, 32), ("decodes too", 0, 6))
    mixed = driven.step(
        ("decodes", 32, 33), ("begins", 0, 41), ("is one", 0, 1), ("goes on", 30, 90),
        ("decodes too", 6, 7),
    )  # fmt: skip
    by_owner = {owner: driven.model.expected(driven.ids[owner]) for owner in lengths}
    goes, decodes = by_owner["goes on"], by_owner["decodes"]
    assert off(first, torch.cat([goes[:30], decodes[:32], by_owner["decodes too"][:6]])) < NEAR
    its = [decodes[32:], by_owner["begins"], by_owner["is one"], goes[30:]]
    assert off(mixed, torch.cat([*its, by_owner["decodes too"][6:]])) < NEAR


@pytest.mark.parametrize("kind", ["grouped queries", "seven to one"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_alone_and_among_any_number_of_others(
    kind: str, threads: int, drive: Callable[..., Drive]
) -> None:
    driven = drive(kind, threads)
    for i in range(64):
        driven.add(str(i), 1 + i % 11)
        driven.feed(str(i), 0, len(driven.ids[str(i)]))
    ends = [(str(i), len(driven.ids[str(i)]) - 1, len(driven.ids[str(i)])) for i in range(64)]
    alone = torch.cat([driven.step(end) for end in ends])
    its = torch.cat([driven.model.expected(driven.ids[str(i)])[-1:] for i in range(64)])
    assert off(alone, its) < NEAR
    for count in (2, 3, 4, 5, 8, 9, 17, 64):
        assert torch.equal(driven.step(*ends[-count:]), alone[-count:])


def test_two_threads_give_the_bits_of_one(drive: Callable[..., Drive]) -> None:
    got = []
    for threads in (1, 2):
        driven = drive(threads=threads)
        driven.add("it", 100)
        got.append(driven.feed("it", 0, 100))
    assert torch.equal(*got)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_prompt_has_the_same_bits_however_it_is_cut(
    chunk: int, drive: Callable[..., Drive]
) -> None:
    driven = drive("norms of heads")
    driven.add("it", 64)
    whole = driven.step(("it", 0, 64))
    parts = [driven.step(("it", at, min(64, at + chunk))) for at in range(0, 64, chunk)]
    assert torch.equal(torch.cat(parts), whole)


def test_thousands_of_tokens_and_moves_from_slab_to_slab(drive: Callable[..., Drive]) -> None:
    driven = drive("biases, tied")
    driven.add("long", 3001)
    driven.add("short", 300)
    expected, short = (driven.model.expected(driven.ids[one]) for one in ("long", "short"))
    driven.feed("short", 0, 299)
    assert off(driven.feed("long", 0, 255), expected[128:255]) < NEAR
    for at in (255, 256, 257):
        assert off(driven.step(("long", at, at + 1)), expected[at : at + 1]) < NEAR
    driven.feed("long", 258, 2990)
    got = driven.step(("long", 2990, 3001), ("short", 299, 300))
    assert off(got, torch.cat([expected[2990:], short[299:]])) < NEAR


def test_nothing_behind_a_rows_position_is_looked_at(drive: Callable[..., Drive]) -> None:
    driven = drive()
    driven.add("it", 30)
    before = driven.step(("it", 0, 30))
    slab = driven.kv.place("it").slab
    for kept in (slab.keys, slab.values):
        kept[:, :, :, 20:] = float("nan")
    assert torch.equal(driven.step(("it", 19, 20)), before[19:20])
    assert torch.equal(driven.step(("it", 15, 20)), before[15:20])


def test_only_the_wanted_rows_have_logits_in_the_order_wanted(
    drive: Callable[..., Drive],
) -> None:
    driven = drive()
    driven.add("it", 20)
    whole = driven.step(("it", 0, 20))
    place = [driven.kv.place("it")] * 20
    for wanted in ([19], [3, 0, 11, 10, 4, 5, 6, 7, 8], []):
        got = driven.rows(driven.ids["it"], [*range(20)], place, wanted)
        assert torch.equal(got, whole[wanted])


def test_rows_outside_memory_are_refused_before_anything_is_touched(
    drive: Callable[..., Drive],
) -> None:
    driven = drive()
    driven.add("it", 2)
    right = driven.step(("it", 0, 2))
    place = driven.kv.place("it")
    floats = slab(replace(driven.model.geometry, dtype=torch.float32))
    other = slab(replace(driven.model.geometry, layers=1))
    turned = slab(driven.model.geometry)
    turned.keys = turned.keys.transpose(0, 1).contiguous().transpose(0, 1)
    wrong: list[tuple[list[int], list[int], list[Place], list[int]]] = [
        ([], [], [], []),
        ([1] * 129, [*range(129)], [place] * 129, [0]),
        ([320], [0], [place], [0]),
        ([-1], [0], [place], [0]),
        ([1], [-1], [place], [0]),
        ([1], [256], [place], [0]),
        ([1], [0], [Place(place.slab, place.slab.slots)], [0]),
        ([1], [0], [Place(place.slab, -1)], [0]),
        ([1], [0], [Place(floats, 0)], [0]),
        ([1], [0], [Place(other, 0)], [0]),
        ([1], [0], [Place(turned, 0)], [0]),
        ([1], [0, 1], [place, place], [0]),
        ([1, 1], [0, 1], [place], [0]),
        ([1, 2], [1, 1], [place, place], [0]),
        ([1], [0], [place], [1]),
        ([1], [0], [place], [-1]),
    ]
    before = place.slab.keys.clone(), place.slab.values.clone()
    for one in wrong:
        with pytest.raises(ValueError, match=r".+"):
            driven.rows(*one)
    assert torch.equal(place.slab.keys, before[0])
    assert torch.equal(place.slab.values, before[1])
    assert torch.equal(driven.step(("it", 0, 2)), right)


def test_weights_that_would_come_out_wrong_are_refused_in_words(
    models: Callable[[str], Model], folder: None
) -> None:
    w = models("grouped queries").weights
    first = w.layers[0]
    cases: list[tuple[Weights, str]] = [
        (replace(w, head=w.head.float()), "float32"),
        (replace(w, head=w.head[:20]), "vocabulary of 20"),
        (replace(w, embedding=w.embedding[:, :80]), "multiple of 32"),
        (replace(w, dim=16), "multiple of 32"),
        (replace(w, kv_heads=3), "evenly"),
        (replace(w, layers=[]), "without layers"),
        (replace(w, layers=[replace(first, qkv=first.qkv[:-1])]), "shape"),
        (replace(w, layers=[replace(first, down=first.down.t())]), "shape|32"),
        (replace(w, layers=[first, replace(first, out=first.out.t())]), "shape"),
        (replace(w, layers=[replace(first, down_bias=first.before_mlp)]), "bias"),
        (replace(w, layers=[replace(first, out=first.out.to("meta"))]), "CPUs"),
        (replace(w, layers=[replace(first, out=first.out.repeat(1, 2)[:, ::2])]), "plainly"),
        (replace(w, cos=w.cos[:100]), "100 positions"),
        (replace(w, sin=w.sin[:100]), "shape"),
        (replace(w, cos=w.cos.bfloat16()), "float32"),
    ]
    for weights, reason in cases:
        with pytest.raises(ValueError, match=reason):
            FusedRows(weights, most_rows=8, most_tokens=MOST_TOKENS, threads=1)


@pytest.mark.parametrize(
    ("where", "name", "value", "reason"),
    [
        (sys, "byteorder", "big", "little-endian"),
        (platform, "machine", lambda: "riscv64", "riscv64"),
        (os, "name", "nt", "Windows"),
        (limits, "get_host_cpu_features", dict, "FMA"),
    ],
)
def test_other_machines_are_refused(
    where: Any, name: str, value: object, reason: str, models: Callable[[str], Model]
) -> None:
    weights = models("grouped queries").weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, value)
        if reason == "FMA":
            patch.setattr(platform, "machine", lambda: "x86_64")
        with pytest.raises(ValueError, match=reason):
            limits.refuse(weights, most_rows=8, most_tokens=MOST_TOKENS, threads=1)


def test_a_thread_that_fails_ends_the_step_with_its_error(drive: Callable[..., Drive]) -> None:
    driven = drive()
    driven.add("it", 4)
    run = driven.rows._run

    def failing(facts: Any, thread: int) -> int:
        if thread == 1:
            raise MemoryError("of the second thread")
        return run(facts, thread)

    driven.rows._run = failing
    with pytest.raises(RuntimeError, match="of the second thread"):
        driven.step(("it", 0, 4))
    driven.rows._run = run
    with pytest.raises(RuntimeError, match="of the second thread"):  # from then on
        driven.step(("it", 0, 4))


@pytest.mark.parametrize("missing", [0, 1])
def test_a_thread_that_never_comes_is_not_waited_for_for_ever(
    missing: int, drive: Callable[..., Drive]
) -> None:
    driven = drive()
    driven.add("it", 4)
    run = driven.rows._run
    driven.rows._plan[plan.NAPS] = 2
    driven.rows._run = lambda facts, thread: 0 if thread == missing else run(facts, thread)
    with pytest.raises(RuntimeError, match="in vain"):
        driven.step(("it", 0, 4))


def test_a_stop_in_the_middle_of_a_step_ends_it(drive: Callable[..., Drive]) -> None:
    driven = drive()
    driven.add("it", 4)
    run, begun = driven.rows._run, threading.Event()

    def late(facts: Any, thread: int) -> int:
        if thread == 1:
            begun.set()
            stopping.join()
        return run(facts, thread)

    def stop() -> None:
        begun.wait()
        driven.rows._abandon()  # what `stop` does first; all of it would wait for this thread
        driven.rows._pool._stopped = True

    driven.rows._run = late
    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(RuntimeError, match="stopped"):
        driven.step(("it", 0, 4))
    driven.rows.stop()
    assert not any(thread.is_alive() for thread in driven.rows._pool._threads)
    with pytest.raises(RuntimeError, match="stopped"):
        driven.step(("it", 0, 4))
