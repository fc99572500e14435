"""What a speculating vLLM says and guesses, as plain data: from here or out of another kernel."""

from __future__ import annotations

from typing import Any

from llmserve.entrypoints.session.session import Session
from support.crowd import Watcher, collect_all, crowd

NGRAM: dict[str, Any] = {
    "method": "ngram", "prompt_lookup_max": 2, "prompt_lookup_min": 1, "num_speculative_tokens": 3,
}  # fmt: skip
DRAFT: dict[str, Any] = {"method": "draft_model", "num_speculative_tokens": 3}
"""It wants a `model` too."""


def said(session: Session, tag: str) -> list[list[int]]:
    """The crowd's greedy replies."""
    outcomes = session.runtime.call(collect_all(session, crowd(session, 16, tag=tag)))
    return [list(one.token_ids) for one in outcomes]


def guessed(session: Session) -> dict[str, Any]:
    """Those replies, and how many tokens were proposed and accepted, by three ways of counting.

    The session must not have served anything before.
    """
    with Watcher(session) as watcher:
        replies = said(session, "guessed")
    frame, stats = session.tape(), session.stats()
    columns = ("draft_tokens", "accepted_tokens")
    return {
        "replies": replies,
        "method": session.info.details["speculation"],
        "steps": [sum(getattr(step, name) for step in watcher.steps) for name in columns],
        "tape": [int(frame[name].sum()) for name in columns],
        "stats": [stats.draft_tokens_total, stats.accepted_tokens_total],
        "acceptance": stats.acceptance,
        "missing": session.telemetry.steps.missing,
    }


def check(found: dict[str, Any], replies: list[list[int]], method: dict[str, Any]) -> None:
    """The same words as without, each step's guesses counted, and some of them right."""
    assert found["replies"] == replies
    assert found["method"] == method["method"]
    proposed, accepted = found["steps"]
    assert proposed > 0
    if method["method"] == "draft_model":  # a model that drafts for itself is mostly right
        assert accepted > 0.8 * proposed
    assert found["tape"] == found["stats"] == [proposed, accepted]
    assert found["acceptance"] == accepted / proposed
    assert found["missing"] == 0
