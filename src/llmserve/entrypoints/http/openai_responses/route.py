"""POST /v1/responses."""

from __future__ import annotations

from typing import Any

from llmserve.core.types import ParamError
from llmserve.entrypoints.http import protocol
from llmserve.entrypoints.http.chat import read_chat
from llmserve.entrypoints.http.errors import ApiError, as_api_error
from llmserve.entrypoints.http.generation import GeneratingRoute, Understood
from llmserve.entrypoints.http.openai_responses.body import read_body, renamed
from llmserve.entrypoints.http.openai_responses.reply import ResponsesReply, repeated
from llmserve.entrypoints.http.replies import new_head


class ResponsesRoute(GeneratingRoute):
    """A chat that comes in other words."""

    async def understand(self, raw: bytes) -> Understood:
        served = self.served
        body = read_body(protocol.read(raw, dict[str, Any]))
        try:
            turn = await read_chat(served, body.chat)
        except (ApiError, ParamError) as error:
            raise renamed(as_api_error(error)) from None
        # OpenAI's ids begin with "resp_", and some clients take them apart there
        id = served.service.new_id("resp").replace("-", "_")
        head = new_head(id, turn.info.model_id)
        reply = ResponsesReply(head, repeated(body.given, turn.sampling), served.texts)
        return Understood(
            id=id,
            prompts=(turn.ids,),
            sampling=turn.sampling,
            claims=body.chat,
            reply=reply,
            stream=bool(body.chat.stream),
            failed=reply.failed,
        )
