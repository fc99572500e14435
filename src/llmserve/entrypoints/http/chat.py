"""POST /v1/chat/completions."""

from __future__ import annotations

from llmserve.entrypoints.http import prompts, protocol
from llmserve.entrypoints.http.generation import GeneratingRoute, Understood
from llmserve.entrypoints.http.protocol import ChatBody
from llmserve.entrypoints.http.replies import ChatReply, new_head
from llmserve.entrypoints.http.structured import check_supported, sent_form


class ChatRoute(GeneratingRoute):
    async def understand(self, raw: bytes) -> Understood:
        served = self.served
        body = protocol.decode(raw, ChatBody)
        info = served.check_model(body.model)
        protocol.check_shape(body, 1)
        ids = [await prompts.chat_ids(served.tokenizer, info, body.messages)]
        check_supported(body, served.service.engine)
        sampling = protocol.sampling(body, prompts.reply_tokens(ids, body, info))
        head = new_head(served.service.new_id("chatcmpl"), info.model_id)
        return Understood(
            id=head.id,
            prompts=tuple(ids),
            sampling=sampling,
            claims=body,
            reply=ChatReply(
                head,
                protocol.texts_of(served.texts, body, sampling),
                with_usage=body.include_usage,
                included=sampling.include_stop_str_in_output,
                prompt_logprobs=body.prompt_logprobs,
            ),
            n=body.choices,
            stream=bool(body.stream),
            form=sent_form(body),
        )
