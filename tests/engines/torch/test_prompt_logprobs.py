"""Log-probabilities of prompts: transformers' own, whatever else is computed, and each once."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from llmserve.core.types import PromptLogprobs, TokenLogprob
from llmserve.engines.torch.model.flat_model import FlatModel
from llmserve.engines.torch.model.select_forward import load
from llmserve.engines.torch.options import parse
from support.tiny_models import SHAPE, Drive, Driven, reference, save_model, words

NEAR = 1e-3
TEXT = "the lighthouse keeper, zażółć gęślą jaźń 🙂 漢字 漢字 "
ALONE: dict[str, Any] = {"max_tokens": 0, "temperature": 0}


@cache
def expected(folder: Path, prompt: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities behind each token of the prompt, as transformers has them."""
    with torch.inference_mode():
        logits = _network(folder)(input_ids=torch.tensor([prompt])).logits[0]
        return torch.as_tensor(logits.float().log_softmax(-1))


@cache
def _network(folder: Path) -> Any:
    return reference(folder)


def found(driven: Driven, id: str) -> PromptLogprobs:
    """Given once, with the first chunk."""
    first, *rest = driven.deltas[id]
    assert first.prompt_logprobs is not None
    assert all(delta.prompt_logprobs is None for delta in rest)
    return first.prompt_logprobs


def check(
    driven: Driven, folder: Path, id: str, prompt: tuple[int, ...], top: int = 0, near: float = NEAR
) -> None:
    got, told = found(driven, id), expected(folder, prompt)
    assert len(got) == len(prompt)
    assert got[0] is None
    for at, token in enumerate(got[1:], 1):
        assert isinstance(token, TokenLogprob)
        row = told[at - 1]
        assert token.token_id == prompt[at]
        assert token.logprob == pytest.approx(row[token.token_id].item(), abs=near)
        assert len(token.top) == top
        for (other, value), best in zip(token.top, row.topk(top).values.tolist(), strict=True):
            assert value == pytest.approx(row[other].item(), abs=near)
            assert value == pytest.approx(best, abs=near)
        assert token.rank is not None
        rank = int((row > row[token.token_id] + near).sum())
        assert rank < token.rank <= int((row >= row[token.token_id] - near).sum())


def prompts(count: int, longest: int = 90) -> list[tuple[int, ...]]:
    return [words(1 + (i * 37) % longest, seed=i) for i in range(count)]


@pytest.mark.parametrize("model", ["llama", "qwen2"])
@pytest.mark.parametrize("forward", ["compact", "general", "plain"])
def test_they_are_transformers_own_in_every_form(
    request: pytest.FixtureRequest, drive: Drive, model: str, forward: str
) -> None:
    folder: Path = request.getfixturevalue(model)
    driven = drive(folder, forward=forward, max_num_batched_tokens=64)
    given = prompts(7)
    for i, prompt in enumerate(given):
        driven.submit(str(i), prompt, max_tokens=i % 3, temperature=0, prompt_logprobs=i % 4)
    driven.finish()
    for i, prompt in enumerate(given):
        check(driven, folder, str(i), prompt, top=i % 4)
        assert len(driven.tokens(str(i))) <= i % 3


def test_a_text_has_the_likelihood_that_transformers_gives_it(llama: Path, drive: Drive) -> None:
    from tokenizers import Tokenizer

    ids = tuple(Tokenizer.from_file(str(llama / "tokenizer.json")).encode(TEXT * 3).ids)
    driven = drive(llama, max_num_batched_tokens=17)
    driven.submit("a", ids, prompt_logprobs=0, **ALONE)
    driven.finish()
    told = sum(token.logprob for token in found(driven, "a")[1:] if token is not None)
    rows = expected(llama, ids)
    own = [rows[at, token].item() for at, token in enumerate(ids[1:])]
    assert told == pytest.approx(sum(own), abs=NEAR)


def test_a_prompt_alone_generates_nothing_and_leaves_its_kv_to_others(
    llama: Path, drive: Drive
) -> None:
    driven, prompt = drive(llama), words(30, seed=1)
    driven.submit("alone", prompt, prompt_logprobs=1, logprobs=1, **ALONE)
    driven.finish()
    (only,) = driven.deltas["alone"]
    assert (only.text, only.token_ids, only.finish_reason, only.logprobs) == ("", (), "length", ())
    assert driven.runner.idle
    driven.submit("next", prompt, max_tokens=3, temperature=0)
    driven.finish()
    assert driven.deltas["next"][0].cached_tokens == 28
    driven.submit("again", prompt, prompt_logprobs=1, **ALONE)  # it takes none of that
    driven.finish()
    assert driven.deltas["again"][0].cached_tokens == 0
    check(driven, llama, "again", prompt, top=1)


def test_a_prompt_of_one_token_has_none_at_all(llama: Path, drive: Drive) -> None:
    driven = drive(llama)
    driven.submit("a", (7,), prompt_logprobs=2, **ALONE)
    driven.submit("b", (7,), prompt_logprobs=2, max_tokens=2, temperature=0)
    driven.finish()
    assert found(driven, "a") == found(driven, "b") == (None,)


def test_one_that_is_preempted_has_each_of_them_once(llama: Path, drive: Drive) -> None:
    driven = drive(llama, kv_blocks=40, max_num_batched_tokens=11)
    given = prompts(6, longest=70)
    for i, prompt in enumerate(given):
        driven.submit(
            str(i), prompt, max_tokens=25, temperature=0, prompt_logprobs=1, ignore_eos=True
        )
    driven.finish()
    assert any(step.record and step.record.preempted for step in driven.steps)
    for i, prompt in enumerate(given):
        check(driven, llama, str(i), prompt, top=1)


def test_one_that_is_preempted_in_its_prompt_goes_on_where_it_was(
    llama: Path, drive: Drive
) -> None:
    driven, prompt = drive(llama, kv_blocks=24, max_num_batched_tokens=8), words(72, seed=3)
    driven.submit("old", words(20, seed=4), max_tokens=40, temperature=0, ignore_eos=True)
    driven.step()
    driven.submit("young", prompt, prompt_logprobs=0, **ALONE)
    seq = driven.runner.planner.get("young")
    assert seq is not None
    while not seq.preemptions:
        assert driven.step()
    assert 0 < seq.scored < 71
    driven.finish()
    check(driven, llama, "young", prompt)


def wanted(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many rows each step makes logits."""
    counts: list[int] = []
    forward = FlatModel.forward

    def counting(model: FlatModel, batch: Any, tokens: list[int], rows: list[int]) -> Any:
        counts.append(len(rows))
        return forward(model, batch, tokens, rows)

    monkeypatch.setattr(FlatModel, "forward", counting)
    return counts


def test_a_step_makes_logits_of_no_more_rows_than_it_may(
    llama: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driven = drive(llama, scores_per_step=16, max_num_batched_tokens=512)
    counts = wanted(driven, monkeypatch)
    given = [words(100 + i, seed=i) for i in range(3)]
    for i, prompt in enumerate(given):
        driven.submit(str(i), prompt, prompt_logprobs=0, max_tokens=1, temperature=0)
        driven.submit(f"plain{i}", prompt[::-1], max_tokens=5, temperature=0)
    driven.finish()
    assert max(counts) <= 16 + 6
    assert sum(counts) == sum(len(p) - 1 for p in given) + 3 + 3 * 5
    for i, prompt in enumerate(given):
        check(driven, llama, str(i), prompt)


def test_knobs_may_turn_and_the_form_may_change_halfway(llama: Path, drive: Drive) -> None:
    driven = drive(llama, forward="plain", max_num_batched_tokens=6)
    given = prompts(5)
    for i, prompt in enumerate(given):
        driven.submit(str(i), prompt, prompt_logprobs=2, max_tokens=4, temperature=0)
    for _ in range(5):
        driven.step()
    driven.retune(max_num_batched_tokens=31, max_num_seqs=2)
    driven.step()
    model = driven.runner._model
    before = model.network, model.compute, model.path
    compact = load(
        parse({"model": llama, "dtype": "float32", "device": "cpu", "forward": "compact"})
    )
    driven.runner.compute_as(compact)
    try:
        driven.step()
        driven.retune(max_num_batched_tokens=8, long_prefill_token_threshold=3)
        driven.finish()
    finally:
        model.network, model.compute, model.path = before
    for i, prompt in enumerate(given):
        check(driven, llama, str(i), prompt, top=2)


def crowd(driven: Driven, scored: bool | None) -> dict[str, list[Any]]:
    """Replies with a neighbour whose prompt is scored, is not, or with none."""
    for i in range(6):
        driven.submit(
            f"r{i}", words(5 + 11 * i, seed=i), max_tokens=12, temperature=float(i % 2), seed=i,
            logprobs=1, ignore_eos=True,
        )  # fmt: skip
    if scored is not None:
        asked = {"prompt_logprobs": 3} if scored else {}
        for i in range(3):
            driven.submit(f"n{i}", words(40, seed=90 + i), max_tokens=5, temperature=0, **asked)
    driven.finish()
    return {
        f"r{i}": [one for delta in driven.deltas[f"r{i}"] for one in delta.logprobs or ()]
        for i in range(6)
    }


def test_a_neighbours_reply_is_what_it_is_without(llama: Path, drive: Drive) -> None:
    replies = [crowd(drive(llama, max_num_batched_tokens=19), s) for s in (None, False, True)]
    alone, plain, scored = replies
    for id in alone:
        tokens = [[one.token_id for one in reply[id]] for reply in replies]
        assert tokens[0] == tokens[1] == tokens[2]
        for one, other in zip(plain[id], scored[id], strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


@pytest.mark.timeout(400)  # the first one compiles the kernels
def test_kernels_of_our_own_score_as_they_draw(
    tmp_path: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaConfig

    shape = SHAPE | {"head_dim": 32, "initializer_range": 0.1}
    with torch.random.fork_rng():
        folder = save_model(tmp_path / "wide", LlamaConfig(**shape))
    drive = partial(drive, forward="fused", dtype="bfloat16")
    neighbours = [crowd(drive(folder, max_num_batched_tokens=19), s) for s in (None, False, True)]
    assert neighbours[0] == neighbours[1] == neighbours[2]  # to the bit
    first = drive(folder)
    first.submit("a", words(20, seed=1), max_tokens=150, temperature=0, logprobs=2, ignore_eos=True)
    first.finish()
    reply = [one for delta in first.deltas["a"] for one in delta.logprobs or ()]
    ids = (*words(20, seed=1), *(one.token_id for one in reply))
    again = drive(folder, max_num_batched_tokens=100)
    again.submit("b", ids, prompt_logprobs=2, **ALONE)
    again.finish()
    told = found(again, "b")[20:]
    assert [(one and one.token_id, one and one.logprob, one and one.top) for one in told] == [
        (one.token_id, one.logprob, one.top) for one in reply
    ]


def test_int8_scores_as_it_draws(qwen2: Path, drive: Drive) -> None:
    loaded = load(
        parse(
            {"model": qwen2, "dtype": "float32", "device": "cpu", "quantization": "int8",
             "forward": "compact"}
        )
    )  # fmt: skip
    first = drive(qwen2)
    first.runner._model = loaded
    options: dict[str, Any] = {"temperature": 0, "logprobs": 0, "ignore_eos": True}
    first.submit("a", words(20, seed=1), max_tokens=30, **options)
    first.finish()
    reply = [one for delta in first.deltas["a"] for one in delta.logprobs or ()]
    ids = (*words(20, seed=1), *(one.token_id for one in reply))
    again = drive(qwen2, max_num_batched_tokens=13)
    again.runner._model = loaded
    again.submit("b", ids, prompt_logprobs=0, **ALONE)
    again.finish()
    told = [one.logprob for one in found(again, "b")[20:] if one is not None]
    # a last bit of attention may round a number of eight bits the other way
    assert told == pytest.approx([one.logprob for one in reply], abs=0.1)


def test_in_any_traffic_they_are_the_same(llama: Path, drive: Drive) -> None:
    """Requests come and leave, blocks are short, prompts share beginnings."""
    import random

    dice = random.Random(5)
    driven = drive(llama, kv_blocks=90, max_num_batched_tokens=23, scores_per_step=9)
    shared = words(24, seed=77)
    scored: dict[str, tuple[int, ...]] = {}
    for i in range(40):
        prompt = (*shared[: dice.choice([0, 0, 16, 24])], *words(dice.randint(1, 40), seed=i))
        options: dict[str, Any] = {"max_tokens": dice.randint(0, 6), "temperature": 0}
        if options["max_tokens"] == 0 or dice.random() < 0.5:
            options["prompt_logprobs"] = 1
            scored[str(i)] = prompt
        driven.submit(str(i), prompt, **options)
        for _ in range(dice.randint(0, 2)):
            driven.step()
        if dice.random() < 0.1:
            driven.abort(str(i))
            scored.pop(str(i), None)
    driven.finish()
    assert len(scored) > 15
    for id, prompt in scored.items():
        check(driven, llama, id, prompt, top=1)
