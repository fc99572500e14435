"""The model's own routes: /v1/models, and the tokenizer's, in vLLM's shapes."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llmserve.engines.tokenizer import TellsSettings
from llmserve.entrypoints.http import prompts, protocol
from llmserve.entrypoints.http.asgi import json_response, read_json
from llmserve.entrypoints.http.errors import ApiError
from llmserve.entrypoints.http.protocol import DetokenizeBody, TokenizeBody
from llmserve.entrypoints.http.state import EndpointState
from llmserve.entrypoints.http.tools.choice import read_tools
from llmserve.entrypoints.http.tools.use import tool_use
from llmserve.serving.requests import known_tokens
from llmserve.serving.tokenize import tokenised


def model_routes(served: EndpointState) -> list[Route]:
    model = _Model(served)
    return [
        Route("/v1/models", model.listing, methods=["GET"]),
        Route("/v1/models/{id:path}", model.one, methods=["GET"]),
        Route("/tokenize", model.tokenize, methods=["POST"]),
        Route("/detokenize", model.detokenize, methods=["POST"]),
        Route("/tokenizer_info", model.tokenizer_info, methods=["GET"]),
    ]


class _Model:
    def __init__(self, served: EndpointState) -> None:
        self._served = served
        self._created = int(time.time())  # wall time, as OpenAI has it

    async def listing(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._card()]})

    async def one(self, request: Request) -> Response:
        self._served.check_model(request.path_params["id"])
        return json_response(self._card())

    async def tokenize(self, request: Request) -> Response:
        raw, headers = await self._read(request)
        body = protocol.decode(raw, TokenizeBody)
        info, tokenizer = self._served.check_model(body.model), self._served.tokenizer
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "send either prompt or messages", param="prompt")
        special = body.add_special_tokens
        if body.messages is None:
            ids = await prompts.prompt_ids(
                tokenizer, info, body.prompt or "", special is not False
            )
        elif special:
            said = "add_special_tokens is for prompts: a chat template puts in its own"
            raise ApiError(400, said, param="add_special_tokens", code="unsupported_parameter")
        else:
            use = tool_use(read_tools(body.tools), tokenizer)
            options = prompts.chat_options(body, self._served.service.allow_special_tokens)
            ids = await prompts.chat_ids(tokenizer, info, body.messages, use, options)
        name = tokenizer.token_name
        return json_response(
            {
                "count": len(ids),
                "max_model_len": info.max_model_len,
                "tokens": ids,
                "token_strs": [name(i) for i in ids] if body.return_token_strs else None,
            },
            headers,
        )

    async def tokenizer_info(self, request: Request) -> Response:
        self._served.check_model(None)
        tokenizer = self._served.tokenizer
        if not isinstance(tokenizer, TellsSettings):
            raise ApiError(404, "this engine does not describe its tokenizer", code="unknown_url")
        return json_response(tokenizer.settings())

    async def detokenize(self, request: Request) -> Response:
        raw, headers = await self._read(request)
        body = protocol.decode(raw, DetokenizeBody)
        info = self._served.check_model(body.model)
        ids = known_tokens(body.tokens, info, "tokens")
        try:
            decode = self._served.tokenizer.decode
            return json_response({"prompt": await tokenised(len(ids), decode, ids)}, headers)
        except (ValueError, OverflowError) as error:
            raise ApiError(400, str(error), param="tokens", code="invalid_value") from None

    async def _read(self, request: Request) -> tuple[bytes, dict[str, str]]:
        """The body, and the headers to answer it with."""
        raw = await read_json(request.scope, request.receive, self._served.context)
        return raw, self._served.check_fields(request.url.path, raw)

    def _card(self) -> dict[str, Any]:
        info = self._served.info
        return {
            "id": info.model_id,
            "object": "model",
            "created": self._created,
            "owned_by": "llmserve",
            "max_model_len": info.max_model_len,
        }
