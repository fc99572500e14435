"""Keys, kept replies, request logs and a policy from a cell, in a whole session."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import openai
import pytest

import llmserve
from llmserve.core.knobs import KnobError
from llmserve.scheduling.user_policy import PolicyError
from llmserve.serving.api_keys import ENVIRONMENT

FAST: dict[str, Any] = {"engine": "simulator", "prefill_ms": 1.0, "decode_ms": 1.0}
GOLD, FREE = "sk-gold-0123456789", "sk-free-0123456789"
KEYS = {"gold": {"key": GOLD, "weight": 3, "ttft_slo_ms": 250}, "free": FREE}


def test_tenants_are_one_row_each_with_terms_and_figures(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with llmserve.serve(**FAST, api_keys=KEYS, tenant_weights="free:0.5") as session:
        for key, count in ((GOLD, 2), (FREE, 1)):
            client = openai.OpenAI(base_url=session.url, api_key=key)
            for _ in range(count):
                client.completions.create(model="simulator", prompt="hello", max_tokens=4)
            client.close()
        table = session.tenants()
        shown = f"{session!r} {session.service!r} {session.service.terms} {table.to_string()}"
    assert table.weight.to_dict() == {"gold": 3, "free": 0.5}
    assert table.done.to_dict() == {"gold": 2, "free": 1}
    assert table.tokens.to_dict() == {"gold": 8, "free": 4}
    assert table.ttft_slo_ms["gold"] == 250
    logged = " ".join(r.getMessage() for r in caplog.records if r.name.startswith("llmserve"))
    for key in (GOLD, FREE):
        assert key not in shown + logged


def test_keys_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, json.dumps(KEYS))
    with (
        llmserve.serve(**FAST) as session,
        openai.OpenAI(base_url=session.url, api_key=FREE) as client,
    ):
        assert client.models.list().data


def test_keys_and_terms_change_while_it_serves(tmp_path: Path) -> None:
    other = tmp_path / "keys.json"
    other.write_text(json.dumps({"free": {"key": FREE, "rate_limit_rps": 0.01, "weight": 5}}))
    with llmserve.serve(**FAST, api_keys=KEYS, rate_burst=1) as session:

        def ask(key: str) -> int:
            with openai.OpenAI(base_url=session.url, api_key=key, max_retries=0) as client:
                try:
                    client.completions.create(model="simulator", prompt="hello", max_tokens=2)
                except openai.APIStatusError as error:
                    return error.status_code
            return 200

        assert [ask(GOLD), ask(FREE), ask(FREE)] == [200, 200, 200]
        with pytest.raises(ValueError, match="is another's too"):
            session.tenants_from({"a": FREE, "b": FREE})
        assert ask(GOLD) == 200
        session.tenants_from(other)
        assert [ask(GOLD), ask(FREE), ask(FREE)] == [401, 200, 429]
        assert session.tenants().weight["free"] == 5


def test_a_tenants_key_cannot_be_the_sessions_own() -> None:
    with pytest.raises(ValueError, match="'free' is another's too"):
        llmserve.serve(**FAST, api_key=FREE, api_keys=KEYS)


def test_each_request_is_one_line_of_the_log_and_its_prompt_only_on_demand(tmp_path: Path) -> None:
    plain, full = tmp_path / "plain.jsonl", tmp_path / "full.jsonl"
    for log in (plain, {"to": str(full), "prompts": True}):
        with llmserve.serve(**FAST, log_requests=log) as session:
            session.generate("a lighthouse", max_tokens=3, raw=True)
            session.generate("a lighthouse", max_tokens=2, tenant="x", raw=True)
    first, second = map(json.loads, plain.read_text().splitlines())
    assert (first["outcome"], first["completion_tokens"]) == ("length", 3)
    assert second["tenant"] == "x"
    assert "lighthouse" not in plain.read_text()
    lines = full.read_text().splitlines()
    assert all("lighthouse" in json.loads(line)["prompt"] for line in lines)


def test_a_policy_written_in_a_cell_serves_until_it_fails() -> None:
    with llmserve.serve(**FAST) as session:

        @session.policy
        def shortest_prompt(waiting: Any, ledger: Any, knobs: Any) -> str:
            if len(waiting) == 1 and waiting[0].tenant == "poison":
                raise ZeroDivisionError("poisoned")
            return str(min(waiting, key=lambda each: (len(each.prompt_ids), each.id)).id)

        assert session.generate("hello", max_tokens=2)
        assert "shortest_prompt: 1 picks" in str(session.service.user_policy)
        session.set(policy="fifo")
        session.set(policy="custom")
        assert session.generate("hello", max_tokens=2, tenant="poison")
        assert session.knobs.policy == "fifo"
        assert "ZeroDivisionError: poisoned" in str(session.service.policy_error)
        with pytest.raises(KnobError, match="register a function first"):
            session.set(policy="custom")

        with pytest.raises(PolicyError, match="is not the id of a waiting request"):
            session.policy(lambda waiting, ledger, knobs: "nobody")
        assert session.knobs.policy == "fifo"
