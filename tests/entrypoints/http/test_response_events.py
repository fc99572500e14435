"""Events of a response add up to the whole answer, however its text is cut into chunks."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core.types import Chunk, FinishReason, Outcome, SamplingParams, TokenLogprob, Usage
from llmserve.engines.call_formats import HERMES
from llmserve.entrypoints.http.openai_responses.reply import ResponsesReply, repeated
from llmserve.entrypoints.http.replies import Head
from llmserve.entrypoints.http.token_texts import TokenTexts
from llmserve.entrypoints.http.tools.parser import ReplyParser
from support.examples import examples
from support.scripted import ByteTokenizer

USAGE = Usage(3, 5, 1)
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "b\\n<"}}\n</tool_call>'
said = st.lists(
    st.one_of(st.text(max_size=6), st.sampled_from([CALL, CALL[:20], CALL[:-3], "<tool", "\n"])),
    max_size=4,
).map("".join)


def reply() -> ResponsesReply:
    ids = iter(f"call_{number}" for number in range(9))
    return ResponsesReply(
        Head("resp_1", 1, "m"),
        repeated({}, SamplingParams()),
        TokenTexts(ByteTokenizer()),
        ReplyParser(HERMES, lambda: next(ids)),
    )


def events(frames: bytes) -> list[Any]:
    blocks = frames.decode().split("\n\n")[:-1]
    return [json.loads(block.split("\n", 1)[1].removeprefix("data: ")) for block in blocks]


def timeless(response: dict[str, Any]) -> dict[str, Any]:
    return {**response, "completed_at": None}


@given(text=said, cuts=st.lists(st.integers(0, 120), max_size=6), cut_off=st.booleans())
@settings(max_examples=examples(200))
def test_a_stream_adds_up_to_the_whole(text: str, cuts: list[int], cut_off: bool) -> None:
    reason: FinishReason = "length" if cut_off else "stop"
    streamed, places = reply(), sorted({0, len(text), *(c for c in cuts if c < len(text))})
    pieces = [text[a:b] for a, b in pairwise(places)] or [""]
    frames = b""
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        frames += streamed.frame(0, Chunk(text=piece, finish_reason=reason if last else None))
    found = events(frames + streamed.end(USAGE))
    assert [event["sequence_number"] for event in found] == list(range(len(found)))

    outcome = Outcome(text=text, token_ids=(), finish_reason=reason, usage=USAGE)
    whole = json.loads(reply().whole([outcome], USAGE))
    final = found[-1]["response"]
    assert timeless(final) == timeless(whole)
    reader = ReplyParser(HERMES, lambda: "call_0")
    reader.push(text)
    reader.finish()
    cut = cut_off and not reader.whole  # calls that are whole are an answer
    assert final["status"] == ("incomplete" if cut else "completed")

    built: list[Any] = []
    for event in found:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(built)
            built.append(event["item"])
        elif kind == "output_item.done":
            assert built[-1]["id"] == event["item"]["id"]
            grown = built[-1].get("grown", "")
            built[-1] = event["item"]
            part = event["item"].get("content")
            assert grown == (part[0]["text"] if part else event["item"].get("arguments"))
        elif kind.endswith(".delta"):
            assert event["item_id"] == built[-1]["id"]
            built[-1]["grown"] = built[-1].get("grown", "") + event["delta"]
    assert built == final["output"]
    assert final["output"]
    assert all(item["status"] == "completed" for item in built[:-1])


def test_log_probabilities_stand_with_the_text_of_their_chunk() -> None:
    made = reply()
    token = TokenLogprob(token_id=97, logprob=-0.5, top=((97, -0.5),))
    frames = made.frame(0, Chunk(text="a", token_ids=(97,), logprobs=(token,)))
    (delta,) = [e for e in events(frames) if e["type"] == "response.output_text.delta"]
    assert delta["logprobs"] == [
        {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}
    ]
    done = events(made.end(USAGE))
    part = next(e for e in done if e["type"] == "response.content_part.done")["part"]
    assert part["logprobs"][0]["bytes"] == [97]
