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
from llmserve.entrypoints.http.structured import check_supported, structured
from llmserve.entrypoints.http.tools.choice import ToolChoice, read_tools
from llmserve.entrypoints.http.tools.use import ToolUse, tool_use


class PreparedChat(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation as the model reads it, and how the reply is drawn."""

    info: EngineInfo
    ids: prompts.Ids
    sampling: SamplingParams
    use: ToolUse | None
    form_field: str
    """The field of the chat that says what the reply must match."""


async def read_chat(
    served: EndpointState, body: ChatBody, choice: ToolChoice | None
) -> PreparedChat:
    """What a chat asks for, over whichever route it came."""
    info = served.check_model(body.model)
    protocol.check_shape(body, 1)
    use = tool_use(choice, served.tokenizer)
    options = prompts.chat_options(body, served.service.allow_special_tokens)
    ids = await prompts.chat_ids(served.tokenizer, info, body.messages, use, options)
    form_field = check_supported(body, served.service.engine, tools=use is not None)
    form = structured(body) if use is None else use.constraint(structured(body))
    sampling = protocol.sampling(body, prompts.reply_tokens([ids], body, info), form)
    if use is not None and use.choice.mode == "required":
        sampling = msgspec.structs.replace(sampling, stop=())
    return PreparedChat(info=info, ids=ids, sampling=sampling, use=use, form_field=form_field)


class ChatRoute(GeneratingRoute):
    async def understand(self, raw: bytes) -> Understood:
        served = self.served
        body = protocol.decode(raw, ChatBody)
        choice = read_tools(body.tools, body.tool_choice, body.parallel_tool_calls)
        turn = await read_chat(served, body, choice)
        head = new_head(served.service.new_id("chatcmpl"), turn.info.model_id, served.fingerprint)
        parser = None if turn.use is None else turn.use.parser
        plain = ChatReply(
            head,
            protocol.texts_of(served.texts, body, turn.sampling),
            with_usage=body.include_usage,
            included=turn.sampling.include_stop_str_in_output,
            prompt_logprobs=body.prompt_logprobs,
            parser=parser,
        )
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
            form_field=turn.form_field,
        )
