"""Drawing tokens: what is kept is what transformers' processors keep, and how it is drawn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmserve.core.types import SamplingParams
from llmserve.engines.torch.sampling import sampler
from llmserve.engines.torch.sampling.sampler import Draws, draw, pick

VOCAB = 500


def logits(rows: int, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=generator) * 3


def row(seed: int = 0, **params: Any) -> Draws:
    return Draws(SamplingParams(**params), seed)


def warped(scores: Tensor, **params: Any) -> Tensor:
    """The distribution by transformers' own processors, in generate's order."""
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    chain = LogitsProcessorList()
    if "temperature" in params:
        chain.append(TemperatureLogitsWarper(params["temperature"]))
    if params.get("top_k"):
        chain.append(TopKLogitsWarper(params["top_k"]))
    if "top_p" in params:
        chain.append(TopPLogitsWarper(params["top_p"]))
    out: Tensor = chain(torch.zeros(1, 1, dtype=torch.long), scores[None].clone())[0]
    return out.softmax(-1)


CASES: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 1.0, "top_k": 7},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 10_000},
    {"temperature": 1.4, "top_k": 300},
    {"temperature": 0.5, "top_k": 40, "top_p": 0.9},
    {"temperature": 30.0, "top_p": 0.97},
]


def drawn_mass(monkeypatch: pytest.MonkeyPatch, scores: Tensor, rows: list[Draws]) -> Tensor:
    """Probability of each token by walking the uniform numbers from 0 to 1, all rows at once."""
    counts, walk = torch.zeros(scores.shape), 600
    for i in range(walk):
        monkeypatch.setattr(Draws, "uniform", lambda _self, at=(i + 0.5) / walk: at)
        tokens, _ = draw(scores, rows)
        counts[torch.arange(len(rows)), torch.tensor(tokens)] += 1
    return counts / walk


def test_every_row_of_a_mixed_batch_has_the_distribution_of_transformers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = logits(len(CASES))
    mass = drawn_mass(monkeypatch, scores, [row(**case) for case in CASES])
    for got, row_scores, case in zip(mass, scores, CASES, strict=True):
        expected = warped(row_scores, **case)
        assert (got[expected == 0] == 0).all(), f"{case} drew a token that is cut"
        assert (got - expected).abs().max() <= 1.01 / 600, case


def test_top_p_beyond_the_first_candidates_sorts_them_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampler, "FEW", 4)
    case: dict[str, Any] = {"temperature": 2.0, "top_p": 0.95}
    scores = logits(1, vocab=40)
    mass = drawn_mass(monkeypatch, scores, [row(**case)])
    assert (mass[0] - warped(scores[0], **case)).abs().max() <= 1.01 / 600


def test_temperature_zero_is_the_likeliest_token() -> None:
    scores = logits(3)
    tokens, _ = draw(scores, [row(temperature=0), row(temperature=1e-9), row(temperature=0)])
    assert tokens == scores.argmax(-1).tolist()


def shaped(scores: Tensor, rows: list[Draws]) -> Tensor:
    return sampler._shape(scores, rows)


def test_repetition_penalty_is_that_of_transformers_over_prompt_and_reply() -> None:
    """Rows of other lengths and with none in between, past the first size of a tally."""
    from transformers import RepetitionPenaltyLogitsProcessor

    scores, by = logits(4), [1.7, 0.6, 1.0, 1.2]
    prompts = [[3, 9, 9, 40], [*range(100, 300)], [3, 9], []]
    replies = [[7, 7, 3], [*range(250, 450)], [5], [1]]
    rows = [replied(*one) for one in zip(by, prompts, replies, strict=True)]
    got = shaped(scores, rows)
    for i in range(4):
        seen = torch.tensor([prompts[i] + replies[i]])
        expected = RepetitionPenaltyLogitsProcessor(by[i])(seen, scores[i : i + 1].clone())[0]
        assert torch.equal(got[i], expected)


def replied(by: float, prompt: list[int], reply: list[int]) -> Draws:
    params = SamplingParams(temperature=0, repetition_penalty=by)
    one = Draws(params, 0, prompt=prompt)
    for token in reply:
        one.see(token)
    return one


def test_presence_and_frequency_count_the_reply_alone() -> None:
    params = SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=0.25)
    one = Draws(params, 0, prompt=[1, 2])
    for token in (5, 5, 5, 6):
        one.see(token)
    penalised = shaped(torch.zeros(2, VOCAB), [row(temperature=0), one])
    told = {i: v for i, v in enumerate(penalised[1].tolist()) if v}
    assert told == {5: -0.5 - 3 * 0.25, 6: -0.5 - 0.25}
    assert not penalised[0].any()


@given(data=st.data())
@settings(deadline=None)
def test_a_tally_changes_what_each_rule_by_itself_would(data: st.DataObject) -> None:
    """Any batch, any history: row by row and token by token, in vLLM's order."""
    tokens = st.integers(0, 11)
    rows, scores = [], logits(data.draw(st.integers(1, 5)), vocab=12)
    expected = scores.clone()
    for line in expected:
        params = SamplingParams(
            repetition_penalty=data.draw(st.sampled_from([1.0, 1.5, 0.5])),
            presence_penalty=data.draw(st.sampled_from([0.0, 1.0])),
            frequency_penalty=data.draw(st.sampled_from([0.0, -0.5])),
            logit_bias=tuple(data.draw(st.dictionaries(tokens, st.floats(-9, 9))).items()),
            min_tokens=data.draw(st.integers(0, 3)),
        )
        prompt, reply = data.draw(st.lists(tokens)), data.draw(st.lists(tokens, max_size=9))
        rows.append(Draws(params, 0, prompt=prompt, ends=(4,)))
        for token in reply:
            rows[-1].see(token)
        by_rule(line, params, prompt, reply)
    before = scores.clone()
    torch.testing.assert_close(shaped(scores, rows), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(scores, before)


def by_rule(line: Tensor, params: SamplingParams, prompt: list[int], reply: list[int]) -> None:
    for token in {*prompt, *reply}:
        by = params.repetition_penalty
        line[token] = line[token] / by if line[token] > 0 else line[token] * by
    for token in set(reply):
        line[token] -= params.frequency_penalty * reply.count(token) + params.presence_penalty
    for token, bias in params.logit_bias:
        line[token] += bias
    if len(reply) < params.min_tokens:
        line[4] = -math.inf


def test_a_token_beyond_the_vocabulary_raises_and_hits_no_neighbour() -> None:
    with pytest.raises(IndexError):
        shaped(logits(2), [row(logit_bias=((VOCAB + 3, 5.0),)), row()])


def test_a_penalty_changes_its_own_row_only() -> None:
    scores = logits(2)
    one = row(temperature=0, presence_penalty=2.0, frequency_penalty=2.0)
    best = scores.argmax(-1).tolist()
    for _ in range(20):
        one.see(best[0])
    tokens, _ = draw(scores, [one, row(temperature=0)])
    assert tokens[0] != best[0]
    assert tokens[1] == best[1]


def drawn_by(scores: Tensor, rows: list[Draws], count: int) -> list[tuple[int, ...]]:
    """What each row draws, time after time."""
    steps = []
    for _ in range(count):
        steps.append(draw(scores, rows)[0])
        for one, token in zip(rows, steps[-1], strict=True):
            one.see(token)
    return [*zip(*steps, strict=True)]


def replies_of(scores: Tensor, rows: list[Draws], count: int) -> tuple[int, ...]:
    """Of the first row."""
    return drawn_by(scores, rows, count)[0]


def test_a_step_run_again_draws_the_same() -> None:
    scores, one, other = logits(1), row(seed=3), row(seed=3)
    again = [
        {*(draw(scores, [one])[0][0] for _ in range(3)), *replies_of(scores, [one], 1)}
        for _ in range(12)
    ]
    assert again == [{token} for token in replies_of(scores, [other], 12)]


def test_a_seed_draws_the_same_whatever_else_is_in_the_batch() -> None:
    scores = logits(6)
    kinds: list[dict[str, Any]] = [{}, {"top_p": 0.9}, {"top_k": 9}, {"temperature": 0}]
    for params in kinds[:3]:
        alone = row(seed=11, **params)
        expected = replies_of(scores[:1], [alone], 20)
        among = row(seed=11, **params)
        others = [row(seed=i, **kind) for i, kind in enumerate([*kinds, {"top_k": 300}])]
        got = replies_of(scores, [among, *others], 20)
        assert got == expected


def test_different_seeds_draw_differently() -> None:
    scores = logits(1)
    replies = {
        replies_of(scores, [one], 12) for one in (row(seed=1), row(seed=2))
    }
    assert len(replies) == 2


def test_logprobs_are_those_of_the_untouched_logits() -> None:
    scores = logits(3)
    rows = [row(temperature=5.0, top_k=3, logprobs=2), row(temperature=0), row(logprobs=0)]
    tokens, told = draw(scores, rows)
    assert told[1] is None
    for i, count in ((0, 2), (2, 0)):
        one = told[i]
        assert one is not None
        expected = scores[i].log_softmax(-1)
        assert one.token_id == tokens[i]
        assert math.isclose(one.logprob, expected[tokens[i]].item(), abs_tol=1e-5)
        ids = expected.topk(count).indices.tolist()
        assert [token for token, _ in one.top] == ids
        assert all(math.isclose(p, expected[t].item(), abs_tol=1e-5) for t, p in one.top)


def test_more_alternatives_than_the_vocabulary_are_all_of_it() -> None:
    _, told = draw(logits(1, vocab=5), [row(logprobs=20)])
    assert told[0] is not None
    assert len(told[0].top) == 5


def test_the_last_uniform_number_draws_no_token_of_mass_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Draws, "uniform", lambda _self: 1.0)
    scores = torch.full((2, 9), -1e4)
    scores[:, 2] = scores[:, 3] = 0
    tokens, _ = draw(scores, [row(), row(top_p=0.99)])
    assert all(token in (2, 3) for token in tokens)


@pytest.mark.parametrize(
    "case",
    [
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 2.0, "min_p": 0.05, "top_p": 0.9},
        {"temperature": 0.8, "min_p": 0.02, "top_k": 9},
        {"temperature": 1.0, "min_p": 1.0},
    ],
)
def test_min_p_keeps_what_transformers_keeps(
    monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]
) -> None:
    from transformers import MinPLogitsWarper

    scores = logits(2)
    mass = drawn_mass(monkeypatch, scores, [row(**case), row(temperature=1.0)])
    kept = MinPLogitsWarper(case["min_p"])(None, scores[:1] / case["temperature"])[0]
    rest = {name: value for name, value in case.items() if name.startswith("top")}
    expected = warped(kept, **rest)
    assert (mass[0][expected == 0] == 0).all()
    assert (mass[0] - expected).abs().max() <= 1.01 / 600
    assert (mass[1] - warped(scores[1])).abs().max() <= 1.01 / 600


def test_logit_bias_moves_its_own_row_only() -> None:
    scores = logits(2)
    best = scores.argmax(-1).tolist()
    worst = int(scores[0].argmin())
    biased = row(temperature=0, logit_bias=((worst, 100.0), (best[0], -100.0)), logprobs=0)
    tokens, told = draw(scores, [biased, row(temperature=0)])
    assert tokens == [worst, best[1]]
    assert told[0] is not None
    assert math.isclose(told[0].logprob, scores[0].log_softmax(-1)[worst].item(), abs_tol=1e-5)


def test_min_tokens_forbids_every_end_until_then() -> None:
    scores = torch.zeros(1, VOCAB)
    scores[0, 3], scores[0, 8], scores[0, 9] = 5.0, 9.0, 8.0
    one = Draws(SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(9,)), 0, ends=(8,))
    drawn = []
    for _ in range(3):
        tokens, _ = draw(scores, [one])
        one.see(tokens[0])
        drawn += tokens
    assert drawn == [3, 3, 8]


def test_on_a_device_that_runs_behind_a_draw_waits_for_nothing_but_its_result() -> None:
    """On `meta` there are no values: whatever asks for one before `fetch` fails."""
    meta = torch.device("meta")
    kinds: list[dict[str, Any]] = [
        {"temperature": 0}, {}, {"top_p": 0.5}, {"top_k": 7, "min_p": 0.1, "logprobs": 3},
        {"temperature": 0, "logit_bias": ((3, 5.0),)}, {"presence_penalty": 1.0},
        {"min_tokens": 5, "stop_token_ids": (4,)},
    ]
    rows = [row(**kind) for kind in kinds]
    rows.append(Draws(SamplingParams(), 0, matcher=Anything()))  # type: ignore[arg-type]  # its part
    rows[5].see(2)
    drawn = pick(torch.empty(len(rows), VOCAB, device=meta), rows)
    assert drawn.tokens.shape == (len(rows),)
    assert [one.shape for one in drawn.logprobs] == [(1,), (1, 3), (1, 3)]
    rows[5].see(9)
    with pytest.raises(NotImplementedError):
        draw(torch.empty(1, VOCAB, device=meta), rows[:1])


class Anything:
    """A form that allows all."""

    def bits(self) -> bytes:
        return b"\xff" * (-(-VOCAB // 32) * 4)


def test_what_is_drawn_among_all_is_what_is_drawn_among_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a GPU, which looks at all at once, says what a CPU says."""
    kinds: list[dict[str, Any]] = [{"top_p": 0.9}, {"top_k": 40, "top_p": 0.95}, {"top_k": 3}]
    scores, replies = logits(3, vocab=5000), []
    for few in (16, 5000):
        monkeypatch.setattr(sampler, "FEW", few)
        rows = [row(seed=i, **kind) for i, kind in enumerate(kinds)]
        replies.append(drawn_by(scores, rows, 40))
    assert replies[0] == replies[1]
