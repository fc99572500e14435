"""What a request asks of sampling, in vLLM's words and in what vLLM then does."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from llmserve.core.types import ParamError, SamplingParams, Structured
from llmserve.engines.vllm.convert import to_params
from llmserve.entrypoints.session.session import Session

EOS = 2
PROMPT = "Once upon a time"


def said(session: Session, **sampling: Any) -> Any:
    return session.generate(PROMPT, raw=True, **sampling).outcome


def test_every_field_of_sampling_reaches_vllm_under_its_name() -> None:
    given: dict[str, Any] = {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3,
        "stop": ("x", "y"), "stop_token_ids": (4,), "ignore_eos": True, "logprobs": 2,
        "presence_penalty": 0.1, "frequency_penalty": 0.2, "repetition_penalty": 1.3,
        "min_p": 0.25, "min_tokens": 5, "logit_bias": ((7, -3.5), (8, 1.0)),
        "structured_outputs": Structured("regex", "a+"), "prompt_logprobs": 4,
        "skip_special_tokens": False, "include_stop_str_in_output": True,
    }  # fmt: skip
    assert given.keys() == set(SamplingParams.__struct_fields__), "a new field wants a line here"
    made = to_params(SamplingParams(**given))
    told = {name: getattr(made, name) for name in given}
    assert told.pop("structured_outputs").regex == "a+"
    assert told.pop("logit_bias") == {7: -3.5, 8: 1.0}
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in told.items()} == {
        name: value for name, value in given.items() if name in told
    }


def test_nothing_asked_is_nothing_told() -> None:
    made = to_params(SamplingParams())
    assert (made.logit_bias, made.structured_outputs, made.seed) == (None, None, None)
    assert (made.min_p, made.min_tokens) == (0.0, 0)


def test_a_bias_of_100_makes_every_token_that_one(session: Session) -> None:
    outcome = said(session, temperature=1.0, seed=1, max_tokens=6, logit_bias=((77, 100.0),))
    assert outcome.token_ids == (77,) * 6


def test_min_tokens_holds_the_end_back(session: Session) -> None:
    ending = {"temperature": 0.0, "max_tokens": 20, "logit_bias": ((EOS, 100.0),)}
    assert said(session, **ending).usage.completion_tokens == 1
    held = said(session, **ending, min_tokens=7)
    assert held.usage.completion_tokens == 8
    assert held.finish_reason == "stop"


def test_min_p_of_1_leaves_the_likeliest_token_only(session: Session) -> None:
    greedy = said(session, temperature=0.0, max_tokens=24, ignore_eos=True)
    free = said(session, temperature=2.0, seed=3, max_tokens=24, ignore_eos=True)
    strict = said(session, temperature=2.0, seed=3, max_tokens=24, ignore_eos=True, min_p=1.0)
    assert strict.token_ids == greedy.token_ids != free.token_ids


@pytest.mark.parametrize(
    ("form", "holds"),
    [
        (Structured("regex", "[ab]{3}-[0-9]"), lambda text: re.fullmatch("[ab]{3}-[0-9]", text)),
        (Structured("choice", '["north","south"]'), lambda text: text in ("north", "south")),
        (
            Structured("json", '{"type":"object","properties":{"a":{"enum":[1,2]}},'
                       '"required":["a"],"additionalProperties":false}'),
            lambda text: json.loads(text)["a"] in (1, 2),
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)  # fmt: skip
def test_a_reply_from_a_cell_keeps_its_form(session: Session, form: Structured, holds: Any) -> None:
    for seed in range(3):
        outcome = said(
            session, temperature=1.5, seed=seed, max_tokens=60, structured_outputs=form
        )
        assert outcome.finish_reason == "stop"
        assert holds(outcome.text), outcome.text


def test_a_form_that_cannot_be_is_refused(session: Session) -> None:
    with pytest.raises(ParamError, match="regex"):
        said(session, max_tokens=4, structured_outputs=Structured("regex", "(("))


def test_a_prompts_logprobs_come_once_and_alone_where_no_reply_is_asked(session: Session) -> None:
    tokenizer = session.service.engine.tokenizer
    ids = tuple(tokenizer.encode(PROMPT))
    alone = said(session, prompt_logprobs=2, max_tokens=0)
    assert (alone.text, alone.token_ids, alone.finish_reason) == ("", (), "length")
    assert alone.usage.completion_tokens == 0
    behind = said(session, prompt_logprobs=2, max_tokens=3, temperature=0.0)
    for outcome in (alone, behind):
        first, *rest = outcome.prompt_logprobs
        assert first is None
        assert tuple(one.token_id for one in rest) == ids[1:]
        assert all(one.rank >= 1 and one.logprob <= 0 and len(one.top) in (2, 3) for one in rest)
    assert said(session, max_tokens=1).prompt_logprobs is None
