"""POST /v1/chat/completions."""

from __future__ import annotations

import msgspec

from llmserve.core.types import SamplingParams
from llmserve.engines.base import EngineInfo
from llmserve.entrypoints.http import prompts, protocol
from llmserve.entrypoints.http.generation import GeneratingRoute, Understood
from llmserve.entrypoints.http.protocol import ChatBody
from llmserve.entrypoints.http.replies import ChatReply, ReplyShape, RunningUsage, new_head
from llmserve.entrypoints.http.state import EndpointState
from llmserve.entrypoints.http.structured import check_supported


class ChatTurn(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation as the model reads it, and how the reply is drawn."""

    info: EngineInfo
    ids: prompts.Ids
    sampling: SamplingParams


async def read_chat(served: EndpointState, body: ChatBody) -> ChatTurn:
    """What a chat asks for, over whichever route it came."""
    info = served.check_model(body.model)
    protocol.check_shape(body, 1)
    options = prompts.chat_options(body, served.service.allow_special_tokens)
    ids = await prompts.chat_ids(served.tokenizer, info, body.messages, options)
    check_supported(body, served.service.engine)
    sampling = protocol.sampling(body, prompts.reply_tokens([ids], body, info))
    return ChatTurn(info=info, ids=ids, sampling=sampling)


class ChatRoute(GeneratingRoute):
    async def understand(self, raw: bytes) -> Understood:
        served = self.served
        body = protocol.decode(raw, ChatBody)
        turn = await read_chat(served, body)
        head = new_head(served.service.new_id("chatcmpl"), turn.info.model_id, served.fingerprint)
        plain = ChatReply(head, served.texts, with_usage=body.include_usage)
        reply: ReplyShape = plain
        if body.continuous_usage:
            reply = RunningUsage(plain, [len(turn.ids)] * body.choices)
        return Understood(
            id=head.id,
            prompts=(turn.ids,),
            sampling=turn.sampling,
            claims=body,
            reply=reply,
            n=body.choices,
            stream=bool(body.stream),
        )
