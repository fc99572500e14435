"""The CUDA path's rules, run eagerly on a CPU: padded and recorded steps say what plain ones say.

`Tape` stands in for CUDA's capture: it keeps the recorded function and runs it again at each
replay. So these tests hold what is padded, written, read and kept, and that all which varies from
step to step comes in through the inputs; they tell nothing about CUDA itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmserve.engines.torch.kv.store import FEWEST_SLOTS, SHORTEST, Geometry, KvStore
from llmserve.engines.torch.model import cuda_graphs
from llmserve.engines.torch.model.batch_layout import Batch, BatchPart, Step, arrange, layout
from llmserve.engines.torch.model.cuda_graphs import Graphs, bucket_length, bucket_rows, pad
from support.examples import examples
from support.tiny_models import Drive, Driven, greedy, words

MAX_TOKENS = 24
expected = partial(greedy, max_tokens=MAX_TOKENS)
GEOMETRY = Geometry(1, 2, 4, 4, torch.float32, torch.device("cpu"))


class Tape:
    """Counts what it records and replays."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


def taped(driven: Driven, monkeypatch: pytest.MonkeyPatch, most_rows: int = 64) -> Tape:
    """From now on its decode steps go through graphs of a tape."""
    tape, model = Tape(), driven.runner._model
    wrapped = Graphs(model.compute, model.geometry, tape, most_rows)
    monkeypatch.setattr(model, "compute", wrapped)
    return tape


def test_rows_are_padded_by_less_than_their_number_and_never_beyond_the_slots() -> None:
    for rows in range(1, 257):
        padded = bucket_rows(rows, 10_000)
        assert rows <= padded < 2 * rows
        assert rows <= 16 or padded < 1.5 * rows
        assert bucket_rows(rows, rows) == rows


def test_few_sizes_cover_all_batches() -> None:
    assert len({bucket_rows(rows, 256) for rows in range(1, 257)}) == 13


@pytest.mark.parametrize("longest", [256, 512, 4096])
def test_lengths_are_padded_within_their_slab(longest: int) -> None:
    buckets = {bucket_length(length, longest) for length in range(1, longest + 1)}
    assert max(buckets) == longest
    assert len(buckets) <= 8
    assert all(bucket_length(length, longest) >= length for length in range(1, longest + 1))


def decodes(kv: KvStore, *owners: str) -> Batch:
    return arrange([BatchPart(owner, 5, 1) for owner in owners], kv)


def decode(kv: KvStore, *owners: str) -> Step:
    return layout(decodes(kv, *owners))


def store(*owners: str, tokens: int = 9) -> KvStore:
    kv = KvStore(GEOMETRY)
    for owner in owners:
        kv.reserve(owner, tokens, 0)
    return kv


def test_rows_of_padding_are_slots_that_nobody_has() -> None:
    kv = store(*"abcde")
    padded = pad(decode(kv, *"abcde"), 64)
    assert padded is not None
    assert padded.rows == 8 == kv.place("a").slab.slots
    assert padded.places == [0, 1, 2, 3, 4]


def test_rows_of_two_slabs_are_padded_apart() -> None:
    kv = store(*"abc")
    kv.reserve("long", 300, 0)
    padded = pad(decode(kv, *"abc", "long"), 64)
    assert padded is not None
    assert [(b.slab.length, b.rows) for b in padded.buckets] == [(256, 4), (512, 1)]
    assert padded.places == [0, 1, 2, 4]


@pytest.mark.parametrize("without", "ace")
def test_an_owner_without_a_row_is_never_taken_for_padding(without: str) -> None:
    kv = store(*"abcde")
    assert pad(decode(kv, *({*"abcde"} - {without})), 64) is None


def test_a_step_with_a_prompt_runs_as_it_is() -> None:
    kv = store(*"ab")
    assert pad(layout(arrange([BatchPart("a", 5, 1), BatchPart("b", 0, 4)], kv)), 64) is None


def test_more_rows_than_the_inputs_hold_run_as_they_are() -> None:
    kv = store(*(str(i) for i in range(9)))
    step = decode(kv, *(str(i) for i in range(9)))
    assert pad(step, 11) is None
    assert pad(step, 12) is not None  # 12 slots


PROMPTS = st.lists(st.integers(1, 60), min_size=1, max_size=11)


@given(
    lengths=PROMPTS,
    later=st.lists(st.integers(0, 9), min_size=11, max_size=11),
    budget=st.sampled_from([3, 16, 500]),
    blocks=st.sampled_from([60, 400]),
)
@settings(
    max_examples=examples(15), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@pytest.mark.parametrize("forward", ["compact", "general"])
def test_padded_steps_say_what_generate_says(
    llama: Path, drive: Drive, forward: str, lengths: list[int], later: list[int], budget: int,
    blocks: int,
) -> None:
    """Whatever comes together, leaves, waits for its turn or loses its KV meanwhile."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        driven = drive(
            llama, forward=forward, kv_blocks=blocks, max_num_batched_tokens=budget
        )
        tape = taped(driven, monkeypatch)
        for i, (length, wait) in enumerate(zip(lengths, later, strict=False)):
            driven.submit(str(i), words(length, i), max_tokens=MAX_TOKENS, temperature=0)
            for _ in range(wait):
                driven.step()
        driven.finish()
    for i, length in enumerate(lengths):
        assert driven.tokens(str(i)) == expected(llama, words(length, i))
    assert tape.replayed >= tape.recorded


def test_most_decode_steps_are_replayed(
    llama: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven = drive(llama)
    tape = taped(driven, monkeypatch)
    for i in range(6):
        driven.submit(str(i), words(20 + i, i), max_tokens=MAX_TOKENS, temperature=0)
    driven.finish()
    records = [step.record for step in driven.steps if step.record]
    plain = sum(not record.prefill_tokens for record in records)
    assert tape.recorded <= 3
    assert tape.replayed >= plain - 4


def test_a_slab_that_moved_is_another_graph(
    llama: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grows under running sequences, and these outgrow it: no replay may use the old one."""
    given = [words(SHORTEST - 14, i) for i in range(2)]
    given += [words(9, 9 + i) for i in range(FEWEST_SLOTS)]
    driven = drive(llama)
    tape = taped(driven, monkeypatch)
    for i, prompt in enumerate(given):
        driven.submit(str(i), prompt, max_tokens=MAX_TOKENS, temperature=0)
        for _ in range(4):
            driven.step()
    driven.finish()
    assert [driven.tokens(str(i)) for i in range(len(given))] == [
        expected(llama, prompt) for prompt in given
    ]
    assert tape.replayed > tape.recorded > 3


def test_a_new_slab_in_place_of_one_that_is_gone_is_another_graph(
    llama: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven = drive(llama, prefix_caching=False)
    tape = taped(driven, monkeypatch)
    for i in range(3):
        driven.submit(str(i), words(9, i), max_tokens=MAX_TOKENS, temperature=0)
        driven.finish()
        assert driven.tokens(str(i)) == expected(llama, words(9, i))
    assert tape.recorded == 3


def test_rows_of_padding_are_at_position_0_whatever_was_there_before() -> None:
    """A position left from a longer slab would write into a neighbour's slot."""
    seen: list[list[int]] = []

    def look(step: Step, ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        seen.append(positions.tolist())
        return torch.zeros(len(wanted), 3)

    graph, kv = Graphs(look, GEOMETRY, Tape(), 16), store(*"abcd", tokens=300)
    for _ in range(2):
        at_length(graph, kv, 299, *"abcd")
    kv.release("d")
    for owner in "abc":
        kv.release(owner)
        kv.reserve(owner, 9, 0)
    for _ in range(2):
        at_length(graph, kv, 5, *"abc")
    assert seen == [[299] * 4, [299] * 4, [5] * 3, [5] * 3 + [0]]


def test_a_graph_keeps_no_slab() -> None:
    """With a capture that lets go of the function, as CUDA's does."""
    kv = store(*"ab")
    kept = weakref.ref(kv.place("a").slab.keys)

    def once(run: Callable[[], None]) -> Callable[[], None]:
        run()
        return nothing

    graph = Graphs(compute, GEOMETRY, once, 8)
    for _ in range(3):
        run(graph, kv, "a", "b")
    assert graph.recorded == 1
    for owner in "ab":
        kv.release(owner)
    assert kept() is None


def nothing() -> None:
    """A replay that does nothing."""


def compute(step: Step, ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
    """Logits that tell whose they are."""
    return torch.stack((ids, positions), 1)[wanted].float()


def run(graph: Graphs, kv: KvStore, *owners: str) -> list[list[float]]:
    batch = decodes(kv, *owners)
    ids = torch.tensor([100 + ord(part.owner) for part in batch.order])
    positions = torch.tensor(batch.positions)
    wanted = torch.arange(len(owners)).flip(0)
    logits: list[list[float]] = graph(layout(batch), ids, positions, wanted).tolist()
    return logits


def test_rows_come_back_in_the_order_asked_for() -> None:
    tape, kv = Tape(), store(*"abc")
    kv.reserve("z", 300, 0)
    graph = Graphs(compute, GEOMETRY, tape, 16)
    told = [run(graph, kv, *"abcz") for _ in range(4)]
    assert told == [[[100 + ord(owner), 5.0] for owner in "zcba"]] * 4
    assert (tape.recorded, tape.replayed) == (1, 3)


def test_graphs_are_few_and_the_latest_used_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 2)
    tape, kv = Tape(), store(*"ab")
    graph = Graphs(compute, GEOMETRY, tape, 16)
    for length in (1, 100):
        for _ in range(2):
            at_length(graph, kv, length)
    at_length(graph, kv, 1)
    at_length(graph, kv, 200)  # in the place of 100
    assert (tape.recorded, graph.recorded) == (2, 1)
    at_length(graph, kv, 1)
    assert tape.recorded == 2
    at_length(graph, kv, 200)
    assert (tape.recorded, graph.recorded) == (3, 2)


def at_length(graph: Graphs, kv: KvStore, position: int, *owners: str) -> None:
    batch = arrange([BatchPart(owner, position, 1) for owner in owners or "ab"], kv)
    rows = len(batch.order)
    graph(layout(batch), torch.ones(rows, dtype=torch.long), torch.tensor([position] * rows),
          torch.arange(rows))


def test_a_model_that_cannot_be_recorded_runs_as_it_is(
    llama: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    driven, tries = drive(llama), []

    def refuse(_: Callable[[], None]) -> Callable[[], None]:
        tries.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    model = driven.runner._model
    monkeypatch.setattr(model, "compute", Graphs(model.compute, model.geometry, refuse, 8))
    for i in range(3):
        driven.submit(str(i), words(9, i), max_tokens=MAX_TOKENS, temperature=0)
    driven.finish()
    assert [driven.tokens(str(i)) for i in range(3)] == [
        expected(llama, words(9, i)) for i in range(3)
    ]
    assert tries == [1]
    assert "not permitted" in capsys.readouterr().err
