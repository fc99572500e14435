"""POST /v1/responses."""

from __future__ import annotations

from typing import Any

from llmserve.core.types import ParamError
from llmserve.entrypoints.http import protocol
from llmserve.entrypoints.http.chat import read_chat
from llmserve.entrypoints.http.errors import ApiError, as_api_error
from llmserve.entrypoints.http.generation import GeneratingRoute, Understood
from llmserve.entrypoints.http.openai_responses.body import CHAT_NAMES, read_body, renamed
from llmserve.entrypoints.http.openai_responses.reply import ResponsesReply, repeated
from llmserve.entrypoints.http.replies import new_head
from llmserve.entrypoints.http.tools.choice import read_tools


class ResponsesRoute(GeneratingRoute):
    """A chat that comes in other words."""

    async def understand(self, raw: bytes) -> Understood:
        served = self.served
        body = read_body(protocol.decode(raw, dict[str, Any]))
        choice = read_tools(*body.tools, flat=True)
        try:
            turn = await read_chat(served, body.chat, choice)
        except (ApiError, ParamError) as error:
            raise renamed(as_api_error(error)) from None
        # OpenAI's ids begin with "resp_", and some clients take them apart there
        id = served.service.new_id("resp").replace("-", "_")
        head = new_head(id, turn.info.model_id)
        parser = None if turn.use is None else turn.use.parser()
        asked = repeated(body.given, turn.sampling)
        texts = protocol.texts_of(served.texts, body.chat, turn.sampling)
        included = turn.sampling.include_stop_str_in_output
        reply = ResponsesReply(head, asked, texts, parser, included=included)
        return Understood(
            id=id,
            prompts=(turn.ids,),
            sampling=turn.sampling,
            claims=body.chat,
            reply=reply,
            stream=bool(body.chat.stream),
            form_field=CHAT_NAMES.get(turn.form_field, turn.form_field),
            failed=reply.failed,
        )
