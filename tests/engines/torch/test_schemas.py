"""Replies of a given form: whatever the model, they are of it, and disturb nobody."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from llmserve.core.types import SamplingParams, Structured
from llmserve.engines.guided.grammars import check
from llmserve.engines.torch.sampling.guided_decoding import Grammars, forbidden
from llmserve.engines.torch.sampling.sampler import Draws, draw
from llmserve.engines.torch.step_loop import StepLoop
from llmserve.engines.torch.text.tokenizer import open_tokenizer
from support.tiny_models import EOS, VOCAB, Drive, Driven, generate, reference

PROMPT = (7, 99, 140, 31)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "alive": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "alive"],
    "additionalProperties": False,
}
SCHEMA = Structured("json", json.dumps(PERSON))


@pytest.fixture
def driven(llama: Path, drive: Drive) -> Driven:
    driven = drive(llama)
    model = driven.runner._model
    tokenizer = open_tokenizer(llama)
    driven.runner._grammars = Grammars(tokenizer.backend, model.vocab_size, model.eos_ids)
    return driven


def ask(driven: Driven, name: str, form: Structured, **sampling: Any) -> None:
    sampling = {"max_tokens": 200, "temperature": 1.5} | sampling
    driven.submit(name, PROMPT, structured_outputs=form, **sampling)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_random_model_keeps_to_a_schema(
    driven: Driven, temperature: float, ignore_eos: bool
) -> None:
    for i in range(6):
        ask(driven, str(i), SCHEMA, temperature=temperature, seed=i, ignore_eos=ignore_eos)
    driven.finish()
    for i in range(6):
        assert driven.end(str(i)).finish_reason == "stop", driven.text(str(i))
        person = json.loads(driven.text(str(i)))
        assert person.keys() == PERSON["properties"].keys()  # type: ignore[attr-defined]  # a dict
        assert len(person["name"]) <= 12
        assert 0 <= person["age"] <= 120
        assert isinstance(person["alive"], bool)
        assert set(person["tags"]) <= {"a", "b"}
        assert len(person["tags"]) <= 3


def test_a_regex_and_choices_are_kept_to(driven: Driven) -> None:
    choices = ["yes", 'no "quite"', "żółw\n", "a.*|[(", "1"]
    for seed in range(8):
        ask(driven, f"r{seed}", Structured("regex", "[a-c]{2,4}-[0-9]+x"), seed=seed)
        ask(driven, f"c{seed}", Structured("choice", json.dumps(choices)), seed=seed)
    driven.finish()
    for seed in range(8):
        assert re.fullmatch("[a-c]{2,4}-[0-9]+x", driven.text(f"r{seed}"))
        assert driven.text(f"c{seed}") in choices
    assert len({driven.text(f"c{seed}") for seed in range(8)}) > 1


def test_what_is_cut_short_is_a_beginning_of_the_form(driven: Driven) -> None:
    ask(driven, "a", SCHEMA, max_tokens=4)
    driven.finish()
    assert driven.end("a").finish_reason == "length"
    assert driven.text("a").startswith('{"')


LONG = Structured("json", json.dumps({
    "type": "object",
    "properties": {
        "story": {"type": "string"},
        "parts": {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
        "more": {
            "type": "object",
            "properties": {name: {"type": "string"} for name in ("who", "where", "when")},
            "required": ["who", "where", "when"],
        },
    },
    "required": ["story"],
}))  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_a_reply_that_nears_its_limit_takes_the_shortest_way_out(
    driven: Driven, temperature: float
) -> None:
    """Also where it would open an object just then that has no room."""
    limits = [*range(20, 100, 5)]
    for most in limits:
        more = {"temperature": temperature, "seed": most, "max_tokens": most, "logprobs": 0}
        ask(driven, str(most), LONG, **more)
    driven.finish()
    for most in limits:
        assert driven.end(str(most)).finish_reason == "stop", driven.text(str(most))
        assert isinstance(json.loads(driven.text(str(most)))["story"], str)
        assert len(driven.tokens(str(most))) <= most
        deltas = [one for step in driven.steps for one in step.deltas if one.id == str(most)]
        for delta in deltas:
            assert delta.logprobs is not None
            assert [one.token_id for one in delta.logprobs] == [*delta.token_ids]


def test_a_log_probability_is_of_the_token_that_was_taken(llama: Path) -> None:
    grammars = Grammars(open_tokenizer(llama).backend, VOCAB, {EOS})
    scores = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))
    row = Draws(
        SamplingParams(temperature=1.0, logprobs=1, max_tokens=1),
        0,
        ends=(EOS,),
        matcher=grammars.open(Structured("regex", r"[a-z]*\."), 1),
    )
    (token,), (logprob,) = draw(scores, [row])
    assert open_tokenizer(llama).decode([token]) == "."
    assert logprob is not None
    assert logprob.token_id == token
    assert logprob.logprob == pytest.approx(float(scores.log_softmax(-1)[0, token]), abs=1e-5)


def test_a_form_survives_preemption(llama: Path, drive: Drive, driven: Driven) -> None:
    crowd = drive(llama, kv_blocks=40)
    crowd.runner._grammars = driven.runner._grammars
    for runner in (driven, crowd):
        for i in range(6):
            ask(runner, str(i), SCHEMA, seed=i, max_tokens=120)
        runner.finish()
    assert any(step.record and step.record.preempted for step in crowd.steps)
    assert [crowd.text(str(i)) for i in range(6)] == [driven.text(str(i)) for i in range(6)]


def test_a_form_changes_nothing_for_its_neighbours(llama: Path, driven: Driven) -> None:
    driven.submit("free", PROMPT, max_tokens=20, temperature=0)
    for i in range(3):
        ask(driven, str(i), SCHEMA)
    driven.finish()
    assert driven.tokens("free") == generate(reference(llama), PROMPT, 20)


def test_a_form_that_cannot_be_read_fails_alone(driven: Driven) -> None:
    ask(driven, "bad", Structured("json", '{"type": "nonsense"}'))
    ask(driven, "good", SCHEMA)
    driven.finish()
    assert driven.end("bad").finish_reason == "error"
    assert driven.end("good").finish_reason == "stop"


ALTERNATIVES = [
    {"type": "object", "properties": {f"{i}-{j}": {"type": "string"} for j in range(20)}}
    for i in range(40)
]


@pytest.mark.parametrize("strict", [True, False])
def test_many_alternatives_at_once_are_kept_to(driven: Driven, strict: bool) -> None:
    form = Structured("json", json.dumps({"anyOf": ALTERNATIVES}), strict=strict)
    check(form)
    ask(driven, "a", form, seed=1, max_tokens=40)
    driven.finish()
    assert isinstance(json.loads(driven.text("a")), dict)


def test_a_form_that_is_lost_on_the_way_fails_alone(llama: Path, driven: Driven) -> None:
    lost = Structured("regex", r"a<\|im_end\|>b")
    check(lost)  # the door finds nothing wrong with it
    ask(driven, "lost", lost)
    driven.submit("good", PROMPT, max_tokens=14, temperature=0)
    driven.finish()
    assert driven.end("lost").finish_reason == "error"
    assert "schema cannot be kept to" in str(driven.end("lost").error)
    assert "\n" not in str(driven.end("lost").error)
    assert driven.tokens("good") == generate(reference(llama), PROMPT, 14)


def test_without_matchers_a_form_is_refused_and_not_forgotten(llama: Path, drive: Drive) -> None:
    driven = drive(llama)
    assert isinstance(driven.runner, StepLoop)
    ask(driven, "a", SCHEMA)
    driven.finish()
    assert "structured" in (driven.end("a").error or "")


def optional(count: int) -> Structured:
    properties = {f"p{i}": {"type": "string"} for i in range(count)}
    return Structured("json", json.dumps({"type": "object", "properties": properties}))


@pytest.mark.parametrize(
    "form",
    [
        Structured("regex", "(("),
        Structured("regex", r"a[^\x00-\U0010ffff]"),
        Structured("json", '{"type": "nonsense"}'),
        Structured("json", '{"$ref": "#"}'),
        optional(12_000),
    ],
    ids=["regex", "nothing", "schema", "circle", "large"],
)
def test_the_door_names_what_is_wrong_with_a_form(form: Structured) -> None:
    with pytest.raises(ValueError, match=r"regex|nonsense|too big|no text fits it"):
        check(form)


def test_what_the_door_lets_through_the_engine_can_open(llama: Path) -> None:
    grammars = Grammars(open_tokenizer(llama).backend, VOCAB, {EOS})
    for form in (optional(1000), Structured("choice", json.dumps([f"x {i}" for i in range(9000)]))):
        check(form)
        assert not grammars.open(form, 100).complete


def test_no_token_beyond_the_form_is_ever_drawn(llama: Path) -> None:
    grammars = Grammars(open_tokenizer(llama).backend, VOCAB, {EOS})
    matcher = grammars.open(Structured("regex", "[ab]x"), 40)
    allowed = (~forbidden([matcher], VOCAB)[0]).nonzero()[:, 0].tolist()
    params = SamplingParams(temperature=1.0, logit_bias=((allowed[0], -100.0),), min_tokens=5)
    row = Draws(params, 0, ends=(EOS,), matcher=matcher)
    scores = torch.zeros(1, VOCAB)
    for _ in range(20):
        tokens, _ = draw(scores, [row])
        assert tokens[0] in allowed[1:]
