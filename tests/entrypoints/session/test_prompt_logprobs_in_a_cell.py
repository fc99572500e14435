"""A prompt's log-probabilities from a cell: with a reply, and alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import llmserve
from llmserve.core.types import ParamError
from llmserve.entrypoints.session.session import Session


@pytest.fixture(scope="module", params=["simulator", "torch"])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    with llmserve.serve(engine=request.param) as made:
        yield made


def test_a_reply_knows_how_likely_its_prompt_was(session: Session) -> None:
    text = "Once upon a time"
    ids = session.service.engine.tokenizer.encode(text)
    outcome = session.generate(text, raw=True, prompt_logprobs=2, max_tokens=3).outcome
    assert outcome.prompt_logprobs is not None
    first, *rest = outcome.prompt_logprobs
    assert first is None
    assert [token.token_id for token in rest if token is not None] == ids[1:]
    assert outcome.usage.completion_tokens == 3
    assert session.generate(text, raw=True, max_tokens=1).outcome.prompt_logprobs is None


def test_a_prompt_alone_is_a_request_like_any_other(session: Session) -> None:
    reply = session.generate("Once upon a time", raw=True, max_tokens=0, prompt_logprobs=0)
    assert reply == ""
    outcome = reply.outcome
    assert (outcome.finish_reason, outcome.token_ids, outcome.ttft_s) == ("length", (), None)
    assert outcome.usage.completion_tokens == 0
    row = session.requests().iloc[-1]
    assert (row.state, row.finish_reason, row.completion_tokens) == ("done", "length", 0)
    assert session.stats().running == session.stats().waiting == 0


def test_nothing_at_all_is_no_request(session: Session) -> None:
    with pytest.raises(ParamError, match="max_tokens must be within 1 and"):
        session.generate("Once", max_tokens=0)
    with pytest.raises(ParamError, match="prompt_logprobs must be within 0 and 20, not 21"):
        session.generate("Once", prompt_logprobs=21)
