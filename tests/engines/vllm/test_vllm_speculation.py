"""Speculative decoding by vLLM's own option: the same words, and how much was guessed right."""

from __future__ import annotations

from typing import Any

import pytest

import llmserve
from llmserve.models import bundled_path
from llmserve.session import Session
from support.crowd import Watcher, collect_all, crowd
from support.small_vllm import OPTIONS

NGRAM = {"method": "ngram", "prompt_lookup_max": 2, "prompt_lookup_min": 1}
DRAFT = {"method": "draft_model", "model": OPTIONS["model"] or str(bundled_path())}


@pytest.mark.parametrize("method", [NGRAM, DRAFT], ids=lambda method: str(method["method"]))
def test_speculation_changes_no_word_and_its_acceptance_is_on_the_tape(
    shared: Session, method: dict[str, Any]
) -> None:
    plain = shared.runtime.call(collect_all(shared, crowd(shared, 16, tag="plain")))
    options = OPTIONS | {"speculative_config": {**method, "num_speculative_tokens": 3}}
    with llmserve.serve(engine="vllm", max_active=64, **options) as session:
        with Watcher(session) as watcher:
            guessed = session.runtime.call(collect_all(session, crowd(session, 16, tag="guess")))
        assert session.info.details["speculation"] == method["method"]
        applied = session.set(max_num_batched_tokens=1)
        assert applied.values.max_num_batched_tokens == 4, "one token and three guesses"
    assert [one.token_ids for one in guessed] == [one.token_ids for one in plain]
    proposed = sum(step.draft_tokens for step in watcher.steps)
    accepted = sum(step.accepted_tokens for step in watcher.steps)
    assert proposed > 0
    if method is DRAFT:  # a model that drafts for itself is mostly right
        assert accepted > 0.8 * proposed
    assert session.telemetry.steps.missing == 0
    frame = session.tape()
    assert frame["draft_tokens"].sum() == proposed
    assert frame["accepted_tokens"].sum() == accepted
    seen = session.stats()
    assert (seen.draft_tokens_total, seen.accepted_tokens_total) == (proposed, accepted)
    assert seen.acceptance == accepted / proposed
