"""The wire format by itself: what text and chunks become on the way."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import msgspec
import pytest

from llmserve.core.events import RejectReason
from llmserve.core.knobs import KnobError
from llmserve.core.types import Chunk, ParamError, TokenLogprob
from llmserve.engines.base import EngineError, EngineInfo
from llmserve.engines.tokenizer import PLAIN_CHAT, ChatOptions
from llmserve.entrypoints.http import prompts, protocol
from llmserve.entrypoints.http.errors import ApiError, as_api_error
from llmserve.entrypoints.http.logprobs import chat_logprobs
from llmserve.entrypoints.http.replies import ChatReply, CompletionReply, Head
from llmserve.entrypoints.http.token_places import TokenPlace
from llmserve.entrypoints.http.token_texts import TokenTexts
from llmserve.scheduling.admission import Rejected
from llmserve.serving.requests import ContextExceeded
from llmserve.serving.stream import Refused, RequestTimeout
from support.toy_engine import engine as toy

HEAD = Head("id-1", 1_700_000_000, 'model "x"')
INFO = EngineInfo(engine="e", model_id="m", max_model_len=100, kv_capacity_tokens=100)


class Letters(toy.Letters):
    """Whose chat shows every message."""

    def chat(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
    ) -> list[int]:
        return self.encode("|".join(f"{m['role']}:{m['content']}" for m in messages))


def events(frames: bytes) -> list[dict[str, Any]]:
    assert frames.endswith(b"\n\n")
    return [json.loads(part.removeprefix(b"data: ")) for part in frames.split(b"\n\n")[:-1]]


@pytest.mark.parametrize("text", ["plain", '"quoted"', "a\n\nb\n", "naïve 東 🌊", "\x00\x7f"])
@pytest.mark.parametrize("with_usage", [False, True])
def test_the_quick_frame_is_the_slow_one(text: str, with_usage: bool) -> None:
    for kind in (ChatReply, CompletionReply):
        reply = kind(HEAD, TokenTexts(Letters()), with_usage=with_usage)
        reply.frame(0, Chunk(text="first"))
        (quick,) = events(reply.frame(0, Chunk(text=text)))
        (slow,) = events(reply.frame(0, Chunk(text=text, finish_reason="stop")))
        choice, ended = quick["choices"][0], slow["choices"][0]
        assert ended.pop("finish_reason") == "stop"
        assert ended.pop("stop_reason") is None
        assert choice.pop("finish_reason") is None
        assert quick == slow
        assert ("usage" in quick) == with_usage


def test_a_chunk_without_text_yet_makes_no_event() -> None:
    reply = CompletionReply(HEAD, TokenTexts(Letters()))
    assert reply.frame(0, Chunk(token_ids=(7,))) == b""


def test_minus_infinity_is_told_as_a_number() -> None:
    token = TokenLogprob(97, -math.inf, ((98, -math.inf),))
    told = chat_logprobs([(TokenPlace(97, 0, b"a"), token)], TokenTexts(Letters()))
    text = json.loads(msgspec.json.encode(told))
    assert text["content"][0]["logprob"] == -9999.0
    assert text["content"][0]["top_logprobs"][0]["logprob"] == -9999.0


REASONS: list[tuple[RejectReason, int]] = [
    ("queue_full", 429), ("no_place", 429), ("rate_limit", 429), ("slo", 429),
    ("too_long", 400), ("queue_timeout", 503), ("stopping", 503),
]  # fmt: skip


def test_every_reason_for_a_refusal_is_here() -> None:
    assert {reason for reason, _ in REASONS} == set(get_args(RejectReason))


@pytest.mark.parametrize(("reason", "status"), REASONS)
def test_each_refusal_has_its_status(reason: RejectReason, status: int) -> None:
    error = as_api_error(Refused(Rejected(reason, 2.1, "because")))
    assert error.status == status
    assert error.message == "because"
    assert error.headers.get("retry-after") == (None if status == 400 else "3")


def test_each_failure_has_its_status() -> None:
    assert as_api_error(RequestTimeout("late")).status == 504
    assert as_api_error(EngineError("died")).status == 503
    assert as_api_error(ParamError("seed", "no")).param == "seed"
    assert as_api_error(KnobError("policy", "no")).param == "policy"
    defect = as_api_error(RuntimeError("/home/me/secret"))
    assert defect.status == 500
    assert "secret" not in defect.message, "a defect's words are for the log, not for the client"


def test_a_chat_may_fill_the_context_and_a_completion_gets_sixteen() -> None:
    chat = protocol.decode(b'{"messages": [{"role": "user", "content": "hi"}]}', protocol.ChatBody)
    completion = protocol.decode(b'{"prompt": "hi"}', protocol.CompletionBody)
    assert prompts.reply_tokens([(1,) * 40], chat, INFO) == 60
    assert prompts.reply_tokens([(1,) * 40], completion, INFO) == 16
    assert prompts.reply_tokens([(1,) * 40, (1,) * 95], completion, INFO) == 5
    asked = msgspec.structs.replace(completion, max_tokens=61)
    with pytest.raises(ContextExceeded) as caught:
        prompts.reply_tokens([(1,) * 40], asked, INFO)
    assert as_api_error(caught.value).code == "context_length_exceeded"


def test_a_developer_speaks_as_the_system() -> None:
    messages = [protocol.Message("developer", "be brief"), protocol.Message("assistant", None)]
    ids = asyncio.run(prompts.chat_ids(Letters(), INFO, messages))
    assert Letters().decode(ids) == "system:be brief|assistant:"


def test_a_long_text_is_tokenised_beside_the_loop_with_the_same_result() -> None:
    text = "ab" * 15_000
    roomy = msgspec.structs.replace(INFO, max_model_len=100_000)
    ids = asyncio.run(prompts.prompt_ids(Letters(), roomy, text))
    assert Letters().decode(ids) == text


def test_more_messages_than_tokens_are_too_long_unread() -> None:
    messages = [protocol.Message("user", "")] * (INFO.max_model_len + 1)
    with pytest.raises(ApiError, match="101 messages") as caught:
        asyncio.run(prompts.chat_ids(Letters(), INFO, messages))
    assert caught.value.code == "context_length_exceeded"


def test_messages_without_text_are_counted_by_what_the_template_makes_of_them() -> None:
    class NeverAsked(Letters):
        def chat(
            self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
        ) -> list[int]:
            raise AssertionError("it would take as long as the messages are many")

    messages = [protocol.Message("user", "")] * (100 * 128 // len("user") + 1)
    with pytest.raises(ApiError) as caught:
        asyncio.run(prompts.chat_ids(NeverAsked(), INFO, messages))
    assert caught.value.code == "context_length_exceeded"


def test_between_the_prompts_of_one_request_others_have_their_turn() -> None:
    told: list[str] = []

    class Telling(Letters):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            told.append(text)
            return super().encode(text)

    async def other() -> None:
        for _ in range(2):
            told.append("other")
            await asyncio.sleep(0)

    async def both() -> list[prompts.Ids]:
        ids, _ = await asyncio.gather(prompts.all_ids(Telling(), INFO, ["a", "b", "c"]), other())
        return ids

    assert [Letters().decode(ids) for ids in asyncio.run(both())] == ["a", "b", "c"]
    assert told == ["a", "other", "b", "other", "c"]
