"""Tenants' keys on vLLM's own routes. Policies and limits are held to one account for all engines
in tests/entrypoints/http/test_policies_alike.py."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from llmserve.core.events import Submitted
from llmserve.entrypoints.session.session import Session
from support.crowd import Watcher

GOLD = "sk-gold-0123456789"
ROUTES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Tell me a story."}]},
    "/v1/completions": {"prompt": "Once"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Tell me a story."}]},
}


@pytest.fixture
def gold(session: Session) -> Iterator[httpx.Client]:
    session.tenants_from({"gold": {"key": GOLD, "rate_limit_rps": 0.001}})
    root = session.url.removesuffix("/v1")
    headers = {"Authorization": f"Bearer {GOLD}"}
    with httpx.Client(base_url=root, headers=headers, timeout=60) as made:
        yield made
    session.tenants_from({})


def test_a_tenants_key_says_whose_request_it_is_and_its_terms_hold(
    session: Session, gold: httpx.Client
) -> None:
    session.set(rate_burst=len(ROUTES))
    with Watcher(session) as watcher:
        for path, body in ROUTES.items():
            told = {**body, "model": session.info.model_id, "max_tokens": 2, "tenant": "other"}
            if path == "/v1/messages":
                told.pop("tenant")
            assert gold.post(path, json=told, headers={"X-Tenant": "other"}).status_code == 200
        told = {"model": session.info.model_id, "max_tokens": 2, "prompt": "Once"}
        refused = gold.post("/v1/completions", json=told)
    assert refused.status_code == 429, refused.text
    assert refused.json()["error"]["code"] == "rate_limit"
    assert 500 <= int(refused.headers["retry-after"]) <= 1000
    session.set(rate_burst=10)
    assert [e.tenant for e in watcher.events if isinstance(e, Submitted)] == ["gold"] * 3


def test_a_tenants_key_leads_to_the_model_only_and_opens_no_more_once_it_is_left_out(
    session: Session, gold: httpx.Client
) -> None:
    assert gold.get("/v1/models").status_code == 200
    assert gold.get("/metrics").status_code == 403
    assert gold.patch("/llmserve/knobs", json={"policy": "priority"}).status_code == 403
    session.tenants_from({})
    assert gold.get("/v1/models").status_code == 401
