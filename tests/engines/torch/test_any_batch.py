"""Whatever is asked for beside it, a request's reply is what it would be alone.

The batches go to the runner as the kernel's messages do, so also what the kernel would have
refused before: an empty prompt, one too long, a form that cannot be. Token ids beyond the
vocabulary are refused there and nowhere else, so they are tried in `test_engine.py`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmserve.core.types import SamplingParams, Structured
from llmserve.engines.process.messages import Stepped, SubmitRequest
from llmserve.engines.torch.sampling.guided_decoding import Grammars
from llmserve.engines.torch.text.tokenizer import open_tokenizer
from support.examples import examples
from support.tiny_models import VOCAB, Drive, Driven, generate, reference

GOOD = ((7, 99, 140, 31), tuple(range(20, 75)), (5,) * 30)
GOOD_TOKENS = 14
LIMIT = 512

TOKENS = st.integers(0, VOCAB - 1)
PROMPTS = st.one_of(
    st.just(()),
    st.lists(TOKENS, min_size=1, max_size=60).map(tuple),
    st.sampled_from([LIMIT - 2, LIMIT - 1, LIMIT, LIMIT + 1]).map(lambda n: (9,) * n),
    st.sampled_from(GOOD).map(lambda prompt: (*prompt, 8)),
)
FORMS = st.one_of(
    st.text(max_size=12).map(lambda text: Structured("regex", text)),
    st.text(max_size=12).map(lambda text: Structured("json", text)),
    st.lists(st.text(max_size=5), max_size=3).map(lambda c: Structured("choice", json.dumps(c))),
    st.sampled_from([
        Structured("regex", "[a-f]{3,9}"),
        Structured("json", '{"type": "array", "items": {"type": "integer"}, "maxItems": 4}'),
        Structured("json", '{"$ref": "#/nowhere"}'),
        Structured("regex", "(" * 50),
    ]),
)


def shares(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, exclude_min=low == 0.0, allow_subnormal=False)


SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.sampled_from([1, 2, 20, 1_000_000]),
    temperature=st.one_of(st.just(0.0), st.floats(0, 100)),
    top_p=shares(0.0, 1.0),
    top_k=st.integers(0, 10_000_000),
    seed=st.none() | st.integers(-(2**63), 2**64 - 1),
    stop=st.lists(st.text(min_size=1, max_size=3), max_size=16).map(tuple),
    stop_token_ids=st.lists(TOKENS, max_size=4).map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=shares(0.0, 100.0),
    min_p=st.floats(0, 1),
    min_tokens=st.integers(0, 1),
    logit_bias=st.lists(
        st.tuples(TOKENS, st.floats(-100, 100)), max_size=4, unique_by=lambda pair: pair[0]
    ).map(tuple),
    structured_outputs=st.none() | FORMS,
)


@cache
def expected(folder: Path) -> list[list[int]]:
    network = reference(folder)
    return [generate(network, prompt, GOOD_TOKENS) for prompt in GOOD]


@pytest.fixture
def forming(llama: Path, drive: Drive) -> Any:
    """A runner that knows grammars too; its KV is short of what a long bad request would take."""
    tokenizer = open_tokenizer(llama)

    def make() -> Driven:
        driven = drive(llama, kv_blocks=150, max_num_batched_tokens=200)
        model = driven.runner._model
        driven.runner._grammars = Grammars(tokenizer.backend, model.vocab_size, model.eos_ids)
        return driven

    return make


def send(driven: Driven, name: str, prompt: tuple[int, ...], sampling: SamplingParams) -> None:
    driven.deltas[name] = []
    answer = driven.runner.handle(SubmitRequest(name, prompt, sampling))
    if isinstance(answer, Stepped):
        driven.deltas[name] += answer.deltas


@given(bad=st.lists(st.tuples(PROMPTS, SAMPLING, st.integers(0, 3)), min_size=1, max_size=5))
@settings(
    max_examples=examples(40), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_request_touches_another(
    llama: Path, forming: Any, bad: list[tuple[tuple[int, ...], SamplingParams, int]]
) -> None:
    driven = forming()
    for i, prompt in enumerate(GOOD):
        send(driven, f"good{i}", prompt, SamplingParams(max_tokens=GOOD_TOKENS, temperature=0))
    for i, (prompt, sampling, later) in enumerate(bad):
        for _ in range(later):
            driven.step()
        send(driven, f"bad{i}", prompt, sampling)
    driven.finish()
    assert [driven.tokens(f"good{i}") for i in range(len(GOOD))] == expected(llama)
    for i, (prompt, sampling, _) in enumerate(bad):
        end = driven.end(f"bad{i}")
        if not 0 < len(prompt) < LIMIT:
            assert end.finish_reason == "error"
        elif sampling.structured_outputs is None:
            assert end.finish_reason in ("stop", "length"), end.error
        most = min(sampling.max_tokens, max(0, LIMIT - len(prompt)))
        assert len(driven.tokens(f"bad{i}")) <= most


@pytest.mark.parametrize("length", [LIMIT - 1, LIMIT])
def test_a_prompt_of_exactly_the_longest_length(llama: Path, drive: Drive, length: int) -> None:
    """One token less than the context leaves one for the reply; the whole context leaves none."""
    driven = drive(llama)
    driven.submit("a", [3 + i % 300 for i in range(length)], max_tokens=9, temperature=0)
    driven.finish()
    assert driven.end("a").finish_reason == ("length" if length < LIMIT else "error")
    assert len(driven.tokens("a")) == LIMIT - length
