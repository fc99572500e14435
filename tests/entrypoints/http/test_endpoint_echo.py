"""Echoed prompts and their log-probabilities, and what a reply's text has of what ended it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from support.serving import MESSAGES, Serving

PROMPT = "Once upon a time, the lighthouse"
GREEDY = {"temperature": 0, "ignore_eos": True}


def ids(server: Serving, text: str) -> list[int]:
    return list(server.service.engine.tokenizer.encode(text))


def ask(http: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = http.post("/v1/completions", json={**GREEDY, "prompt": PROMPT, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def stream(http: httpx.Client, **body: Any) -> dict[int, list[dict[str, Any]]]:
    """Events by choice."""
    answer = http.post("/v1/completions", json={**GREEDY, "prompt": PROMPT, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    found: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        for choice in json.loads(line)["choices"] if line != "[DONE]" else []:
            found.setdefault(choice["index"], []).append(choice)
    return found


def together(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The same as one choice of a whole answer."""
    told = [event["logprobs"] for event in events if event["logprobs"]]
    fields = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {
        "text": "".join(event["text"] for event in events),
        "finish_reason": events[-1]["finish_reason"],
        "logprobs": {name: [one for part in told for one in part[name]] for name in fields}
        if told else None,
    }  # fmt: skip


def check(logprobs: dict[str, Any], text: str, prompt: list[int], new: int) -> None:
    tokens, offsets = logprobs["tokens"], logprobs["text_offset"]
    assert len(tokens) == len(offsets) == len(logprobs["top_logprobs"]) == len(prompt) + new
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    for token, value, top, offset in zip(
        tokens, logprobs["token_logprobs"], logprobs["top_logprobs"], offsets, strict=True
    ):
        assert text[offset : offset + len(token)] == token
        if top is not None:
            assert top[token] == value
            assert max(top.values()) >= value


@pytest.mark.parametrize("new", [0, 1, 5])
@pytest.mark.parametrize("as_ids", [False, True])
def test_an_echo_is_the_prompt_and_its_logprobs(
    http: httpx.Client, server: Serving, new: int, as_ids: bool
) -> None:
    known = ids(server, PROMPT)
    prompt: Any = known if as_ids else PROMPT
    answer = ask(http, prompt=prompt, echo=True, max_tokens=new, logprobs=1)
    (choice,) = answer["choices"]
    plain = ask(http, max_tokens=new)["choices"][0]["text"] if new else ""
    assert choice["text"] == PROMPT + plain
    assert choice["finish_reason"] == "length"
    check(choice["logprobs"], choice["text"], known, new)


def test_a_prompt_alone_costs_no_reply(http: httpx.Client, server: Serving) -> None:
    usage = ask(http, echo=True, max_tokens=0)["usage"]
    count = len(ids(server, PROMPT))
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (count, 0)
    assert usage["total_tokens"] == count


@pytest.mark.parametrize("as_ids", [False, True])
def test_each_of_several_prompts_is_echoed(
    http: httpx.Client, server: Serving, as_ids: bool
) -> None:
    """As lm-evaluation-harness sends them."""
    texts = [PROMPT, "The sea was grey", "A gull"]
    known = [ids(server, text) for text in texts]
    answer = ask(
        http, prompt=known if as_ids else texts, echo=True, max_tokens=1, logprobs=1, seed=1234
    )
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    for choice, text, prompt in zip(answer["choices"], texts, known, strict=True):
        assert choice["text"].startswith(text)
        check(choice["logprobs"], choice["text"], prompt, 1)
        told = choice["logprobs"]["token_logprobs"][1:-1]
        assert sum(told) <= 0
        assert len(told) == len(prompt) - 1


@pytest.mark.parametrize("logprobs", [None, 0, 2])
@pytest.mark.parametrize("new", [0, 1, 6])
def test_a_stream_begins_with_the_prompt_and_says_the_same(
    http: httpx.Client, server: Serving, logprobs: int | None, new: int
) -> None:
    asked: dict[str, Any] = {"echo": True, "max_tokens": new, "n": 2, "seed": 3, "temperature": 1}
    if logprobs is not None:
        asked["logprobs"] = logprobs
    whole = ask(http, **asked)["choices"]
    events = stream(http, **asked)
    assert sorted(events) == [0, 1]
    for index, choice in enumerate(whole):
        assert events[index][0]["text"].startswith(PROMPT)
        told = together(events[index])
        assert told["text"] == choice["text"]
        assert told["finish_reason"] == choice["finish_reason"]
        if logprobs is not None:
            for name in ("tokens", "text_offset"):
                assert told["logprobs"][name] == choice["logprobs"][name]
            assert told["logprobs"]["token_logprobs"][1:] == pytest.approx(
                choice["logprobs"]["token_logprobs"][1:], abs=1e-2
            )
            check(told["logprobs"], told["text"], ids(server, PROMPT), new)


def test_prompt_logprobs_have_vllms_shape(http: httpx.Client, server: Serving) -> None:
    known = ids(server, PROMPT)
    (choice,) = ask(http, max_tokens=1, prompt_logprobs=2)["choices"]
    chat = http.post(
        "/v1/chat/completions",
        json={"messages": MESSAGES, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0},
    ).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert [len(one) for one in chat["prompt_logprobs"][1:]] == [1] * (
        len(chat["prompt_logprobs"]) - 1
    )
    first, *rest = choice["prompt_logprobs"]
    assert first is None
    for token, one in zip(known[1:], rest, strict=True):
        assert len(one) in (1, 2, 3)
        own = one[str(token)]
        assert own.keys() == {"logprob", "rank", "decoded_token"}
        assert own["rank"] >= 1
        assert own["logprob"] <= 0


def test_prompt_logprobs_are_not_streamed(http: httpx.Client) -> None:
    body = {"prompt": PROMPT, "stream": True, "prompt_logprobs": 1}
    answer = http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert "prompt_logprobs" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [{"max_tokens": 0}, {"max_tokens": 0, "echo": False}])
def test_no_tokens_are_asked_for_only_with_the_prompt(
    http: httpx.Client, body: dict[str, Any]
) -> None:
    answer = http.post("/v1/completions", json={"prompt": PROMPT, **body})
    assert answer.status_code == 400
    assert "max_tokens" in answer.json()["error"]["message"]


def test_tokens_may_be_written_as_their_ids(http: httpx.Client, server: Serving) -> None:
    asked = {"echo": True, "max_tokens": 1, "logprobs": 1, "return_tokens_as_token_ids": True}
    (choice,) = ask(http, **asked)["choices"]
    known = ids(server, PROMPT)
    assert choice["logprobs"]["tokens"][:-1] == [f"token_id:{token}" for token in known]


def test_a_stop_string_may_stay_in_the_text(http: httpx.Client) -> None:
    text = ask(http, max_tokens=12)["choices"][0]["text"]
    stop = text[len(text) // 2 :][:3]
    asked = {"max_tokens": 12, "stop": [stop], "include_stop_str_in_output": True}
    (choice,) = ask(http, **asked)["choices"]
    assert choice["text"] == text[: text.index(stop) + len(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert together(stream(http, **asked)[0])["text"] == choice["text"]
    (cut,) = ask(http, max_tokens=12, stop=[stop])["choices"]
    assert cut["text"] == text[: text.index(stop)]


@pytest.mark.parametrize("included", [False, True])
def test_a_stop_string_cuts_the_bytes_too(http: httpx.Client, included: bool) -> None:
    body = {"messages": MESSAGES, "max_tokens": 16, "logprobs": True, **GREEDY}
    text = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 :][:3]
    body |= {"stop": [stop], "include_stop_str_in_output": included}
    (choice,) = http.post("/v1/chat/completions", json=body).json()["choices"]
    told = choice["logprobs"]["content"]
    joined = b"".join(bytes(one["bytes"] or ()) for one in told)
    assert joined.decode() == choice["message"]["content"]
    answer = http.post("/v1/chat/completions", json={**body, "stream": True})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[6:7] == "{"]
    choices = [one for event in events for one in event["choices"]]
    streamed = [
        entry
        for one in choices
        if one.get("logprobs")
        for entry in one["logprobs"]["content"]
    ]
    assert [one["bytes"] for one in streamed] == [one["bytes"] for one in told]


def test_special_tokens_may_be_shown(http: httpx.Client, server: Serving) -> None:
    """The reply is steered to an end token, and goes on behind it."""
    tokenizer = server.service.engine.tokenizer
    special = [token for token in range(300) if tokenizer.token_bytes(token) is None]
    if not special:
        pytest.skip("this engine's vocabulary has no special tokens")
    token = special[-1]
    asked = {"max_tokens": 3, "logit_bias": {str(token): 100}, "logprobs": 0}
    name = tokenizer.token_name(token)
    (hidden,) = ask(http, **asked)["choices"]
    (shown,) = ask(http, **asked, skip_special_tokens=False)["choices"]
    assert (hidden["text"], shown["text"]) == ("", name * 3)
    assert shown["logprobs"]["text_offset"] == [0, len(name), 2 * len(name)]
    assert hidden["logprobs"]["tokens"] == shown["logprobs"]["tokens"] == [name] * 3
    assert hidden["logprobs"]["text_offset"] == [0, 0, 0]
    streamed = together(stream(http, **asked, skip_special_tokens=False)[0])
    assert streamed["text"] == shown["text"]
    assert streamed["logprobs"]["text_offset"] == shown["logprobs"]["text_offset"]


def test_no_logprobs_may_be_said_in_both_fields(http: httpx.Client) -> None:
    body = {"messages": MESSAGES, "max_tokens": 1, "logprobs": False, "top_logprobs": 0}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["logprobs"] is None


def test_best_of_is_one_or_n(http: httpx.Client) -> None:
    for body in ({"best_of": 1}, {"best_of": 2, "n": 2, "temperature": 1}):
        assert len(ask(http, max_tokens=1, **body)["choices"]) == body.get("n", 1)


@pytest.mark.parametrize("text", ["👩‍👩‍👧 naïve", "नमस्ते", "ที่นี่", "שָׁלוֹם עולם", "漢字 e\u0301"])
def test_joined_bytes_of_a_chat_are_its_reply(
    http: httpx.Client, server: Serving, text: str
) -> None:
    """Whole and streamed; the end token has a name, and no bytes."""
    if server.info.engine == "simulator":
        pytest.skip("no form can make the simulator say this; its words are in test_token_places")
    body = {
        "messages": MESSAGES, "max_tokens": 90, "temperature": 0, "logprobs": True,
        "structured_outputs": {"choice": [text]},
    }  # fmt: skip
    (choice,) = http.post("/v1/chat/completions", json=body).json()["choices"]
    assert choice["message"]["content"] == text
    told = choice["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"] or ()) for one in told) == text.encode()
    assert any(one["token"].startswith("bytes:") for one in told)
    answer = http.post("/v1/chat/completions", json={**body, "stream": True})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[6:7] == "{"]
    streamed = [
        entry
        for event in events
        for one in event["choices"]
        if one.get("logprobs")
        for entry in one["logprobs"]["content"]
    ]
    assert [(one["token"], one["bytes"]) for one in streamed] == [
        (one["token"], one["bytes"]) for one in told
    ]
