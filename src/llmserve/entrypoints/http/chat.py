"""POST /v1/chat/completions."""

from __future__ import annotations

import msgspec

from llmserve.entrypoints.http import prompts, protocol
from llmserve.entrypoints.http.generation import GeneratingRoute, Understood
from llmserve.entrypoints.http.protocol import ChatBody
from llmserve.entrypoints.http.replies import ChatReply, new_head
from llmserve.entrypoints.http.structured import check_supported, structured
from llmserve.entrypoints.http.tools.choice import read_tools
from llmserve.entrypoints.http.tools.use import tool_use


class ChatRoute(GeneratingRoute):
    async def understand(self, raw: bytes) -> Understood:
        served = self.served
        body = protocol.decode(raw, ChatBody)
        info = served.check_model(body.model)
        protocol.check_shape(body, 1)
        use = tool_use(
            read_tools(body.tools, body.tool_choice, body.parallel_tool_calls), served.tokenizer
        )
        ids = [await prompts.chat_ids(served.tokenizer, info, body.messages, use)]
        asks_form = check_supported(body, served.service.engine, tools=use is not None)
        form = structured(body) if use is None else use.constraint(structured(body))
        sampling = protocol.sampling(body, prompts.reply_tokens(ids, body, info), form)
        if use is not None and use.choice.mode == "required":
            sampling = msgspec.structs.replace(sampling, stop=())
        head = new_head(served.service.new_id("chatcmpl"), info.model_id)
        parser = None if use is None else use.parser
        return Understood(
            id=head.id,
            prompts=tuple(ids),
            sampling=sampling,
            claims=body,
            reply=ChatReply(head, served.texts, with_usage=body.include_usage, parser=parser),
            n=body.choices,
            stream=bool(body.stream),
            form_field=asks_form,
        )
