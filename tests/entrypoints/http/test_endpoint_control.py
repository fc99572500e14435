"""Models, health, metrics, knobs, requests and steps."""

from __future__ import annotations

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmserve.core.events import KnobsChanged
from llmserve.core.knobs import SPECS
from support.serving import MESSAGES, Serving

BODY = {"messages": MESSAGES, "max_tokens": 3, "ignore_eos": True}


def test_the_served_model_is_listed_and_found(client: openai.OpenAI, server: Serving) -> None:
    (model,) = client.models.list().data
    assert model.id == server.model
    assert client.models.retrieve(server.model).id == server.model


def test_another_model_is_not_found(client: openai.OpenAI, server: Serving) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4o"):
        client.models.retrieve("gpt-4o")
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert caught.value.code == "model_not_found"


def test_health_is_503_until_ready(server: Serving, http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ready"}
    server.service.supervisor.state = "new"
    try:
        answer = http.get("/health")
    finally:
        server.service.supervisor.state = "up"
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "not_ready"


def test_metrics_are_prometheus_text_that_counts_this_request(http: httpx.Client) -> None:
    def generated() -> float:
        answer = http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        (family,) = (
            family
            for family in text_string_to_metric_families(answer.text)
            if family.name == "llmserve_generation_tokens"
        )
        return sum(s.value for s in family.samples if s.name.endswith("_total"))

    before = generated()
    http.post("/v1/chat/completions", json=BODY)
    assert generated() == before + 3


def test_metrics_are_a_json_snapshot_for_who_accepts_json(http: httpx.Client) -> None:
    http.post("/v1/chat/completions", json=BODY)
    told = http.get("/metrics", headers={"Accept": "application/json"}).json()
    assert told["ttft"]["n"] >= 1
    assert told["generated_tokens_total"] >= 3


def test_knobs_are_told_with_all_that_a_control_needs(
    http: httpx.Client, server: Serving
) -> None:
    knobs = http.get("/llmserve/knobs").json()["knobs"]
    assert list(knobs) == list(SPECS)
    for name, spec in SPECS.items():
        told = knobs[name]
        assert told["help"] == spec.help
        assert told["default"] == spec.default
        assert (told["low"], told["high"]) == (spec.low, spec.high)
        assert told["choices"] == list(spec.choices)
        assert told["layer"] == spec.layer
        assert told["disabled"] == server.info.unsupported.get(name)
    assert knobs["max_num_seqs"]["ceiling"] == server.info.ceilings.get("max_num_seqs")


def test_a_patch_is_adopted_by_the_engine_and_told_as_an_event(
    http: httpx.Client, server: Serving
) -> None:
    with server.knobs(), server.tail() as tail:
        applied = http.patch("/llmserve/knobs", json={"max_num_seqs": 5, "queue_max": 9}).json()
        change = tail.wait(KnobsChanged)
        assert server.service.board.current.max_num_seqs == 5
    assert applied["changed"]["max_num_seqs"][1] == 5
    assert applied["values"]["queue_max"] == 9
    assert applied["clamped"] == []
    assert isinstance(applied["adopted_step"], int)
    assert applied["ms"] >= 0
    assert change.source == "http"
    assert set(change.changed) == {"max_num_seqs", "queue_max"}


def test_a_value_over_the_ceiling_is_clamped_and_said_so(
    http: httpx.Client, server: Serving
) -> None:
    ceiling = server.info.ceilings["max_num_seqs"]
    with server.knobs():
        applied = http.patch("/llmserve/knobs", json={"max_num_seqs": 1024}).json()
    if ceiling < 1024:
        (clamp,) = applied["clamped"]
        assert (clamp["name"], clamp["asked"], clamp["got"]) == ("max_num_seqs", 1024, ceiling)
        assert clamp["why"]
    assert applied["values"]["max_num_seqs"] == min(ceiling, 1024)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"max_num_seqs": -1}', "max_num_seqs"),
        (b'{"max_num_seqs": true}', "max_num_seqs"),
        (b'{"max_num_seqs": 1' + b"0" * 400 + b"}", "max_num_seqs"),
        (b'{"max_num_seqs": 1' + b"0" * 5000 + b"}", "max_num_seqs"),
        (b'{"queue_timeout_s": 1e400}', "queue_timeout_s"),
        (b'{"tenant_weights": {"a": -1e999}}', "tenant_weights"),
        (b'{"evict": 1e400}', "evict"),
        (b'{"policy": ["fifo"]}', "policy"),
        (b'{"policy": ' + b"[" * 100_000, None),
        (b'{"policy": NaN}', None),
        (b'{"queue_max": null}', "queue_max"),
        (b'{"no_such_knob": 1}', "no_such_knob"),
        (b'{"queue_max": 5, "max_num_seqs": 0}', "max_num_seqs"),
        (b"[]", None),
        (b"", None),
    ],
)
def test_a_wrong_change_changes_nothing(
    http: httpx.Client, server: Serving, body: bytes, param: str | None
) -> None:
    before = server.service.board.current
    answer = http.patch("/llmserve/knobs", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert server.service.board.current == before


def test_requests_and_steps_tell_of_what_was_served(http: httpx.Client) -> None:
    made = http.post("/v1/chat/completions", json=BODY).json()
    row = http.get("/llmserve/requests", params={"limit": 1}).json()["data"][-1]
    assert row["id"] == made["id"]
    assert row["completion_tokens"] == made["usage"]["completion_tokens"]
    steps = http.get("/llmserve/steps").json()["data"]
    mine = [step for step in steps if any(r[0] == made["id"] for r in step["rows"])]
    computed = sum(r[2] for step in mine for r in step["rows"] if r[0] == made["id"])
    cached = made["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert computed + cached == made["usage"]["total_tokens"] - 1, "the last token is not fed back"
    last = steps[-1]["index"]
    since = http.get("/llmserve/steps", params={"since": last - 1, "limit": 5}).json()["data"]
    found = [step["index"] for step in since]
    assert found == [last, last + 1][: len(found)]  # vLLM takes one more, behind the last request's
    assert found


@pytest.mark.parametrize("query", ["limit=-1", "limit=x", "since=1e3", "limit=٣", "since="])
def test_a_wrong_count_is_400(http: httpx.Client, query: str) -> None:
    answer = http.get(f"/llmserve/steps?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]
