"""What another application answers, held back and put right before it leaves.

Held back: until it is known whether there will be an answer or a refusal. Put right: its errors
become the error objects of all other routes, and its streams get the headers that proxies need.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Mapping
from typing import Any

import msgspec
from starlette.types import Message, Send

from llmserve.core.types import ParamError
from llmserve.entrypoints.http.asgi import DONE, SSE_HEADERS, JsonAnswer
from llmserve.entrypoints.http.errors import SERVING_ERRORS, ApiError, as_api_error
from llmserve.serving.stream import Stream

_PROMPTS = {"/v1/completions": "prompt", "/v1/responses": "input"}


class ForwardedCall:
    """One HTTP request on its way through the other application."""

    def __init__(
        self, path: str, fields: Mapping[str, object], limit: int = 0, choices: int = 1
    ) -> None:
        """limit: the model's longest context."""
        self.path = path
        self.limit = limit
        self.main = _PROMPTS.get(path, "messages")
        """The field that holds what the model is to read."""
        self.fields = fields
        """The body, to find out what an error is about."""
        self.streams: list[Stream] = []
        """The requests that it has come to."""
        self.choices = choices
        """Sequences that it asks for; 0 once the first of them has reached admission control."""
        self.headers: dict[str, str] = {}
        """To be added to those of the answer."""
        self.refused: Exception | None = None
        """The error of admission control, where it rejected one."""

    @property
    def decided(self) -> bool:
        """Whether a chunk has come: what is sent from now on is the answer."""
        return any(stream.begun for stream in self.streams)

    @property
    def refusal(self) -> Exception | None:
        """The error of admission control, or a later failure: a status of its own while nothing has
        been sent, and else the stream's last event."""
        if self.refused is not None:
            return self.refused
        for stream in self.streams:
            if stream.raised is not None and isinstance(stream.raised, SERVING_ERRORS):
                return blamed(stream.raised, self)
        return None


class HeldResponse:
    """The other application's `send`, held back until it is certain."""

    def __init__(self, send: Send, call: ForwardedCall) -> None:
        self._send = send
        self._call = call
        self._kept: list[Message] | None = []
        self._over = False
        self._streams = False

    @property
    def begun(self) -> bool:
        return self._over or self._kept is None

    def __call__(self, message: Message) -> Awaitable[None]:
        if self._kept is None and not self._over and self._call.refusal is None:
            return self._send(message)  # once for each token: as if this were not here
        return self._hold(message)

    async def _hold(self, message: Message) -> None:
        if self._over:
            return
        if (refusal := self._call.refusal) is not None:
            await self._fail(as_api_error(refusal))
        elif self._kept is not None:
            self._kept.append(message)
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            if whole or self._call.decided:
                await self._release(self._kept)

    async def _fail(self, error: ApiError) -> None:
        self._over = True
        if self._kept is not None:
            await JsonAnswer(self._send).fail(error)
            return
        last = b"data: " + error.body + b"\n\n" + DONE if self._streams else b""
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def _release(self, kept: list[Message]) -> None:
        start = kept[0]
        if start["status"] >= 400 and not self._call.path.startswith("/v1/messages"):
            body = b"".join(message.get("body", b"") for message in kept[1:])
            await self._fail(translated(start["status"], body, self._call))
            return
        headers = dict(start["headers"])
        self._streams = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        headers |= {name.encode(): value.encode() for name, value in self._call.headers.items()}
        if self._streams:
            headers |= dict(SSE_HEADERS)
        start = {**start, "headers": [*headers.items()]}
        self._kept = None
        for message in (start, *kept[1:]):
            await self._send(message)


def translated(status: int, body: bytes, call: ForwardedCall) -> ApiError:
    """vLLM's error as one of ours, which names the field that it is about."""
    try:
        error: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        error = {}
    error = error.get("error", error) if isinstance(error, dict) else {}
    error = error if isinstance(error, dict) else {}
    message = str(error.get("message") or error.get("detail") or body.decode(errors="replace"))
    param = str(error.get("param") or "").removeprefix("body.").partition(".")[0]
    code = str(error.get("code") or "")
    if param in ("input_tokens", "input_text") or any(word in message for word in _TOO_LONG):
        param, code = call.main, "context_length_exceeded"
    elif param == "max_tokens" and call.fields.get(param) != 0 and "got 0" in message:
        # vLLM has cut max_tokens to the room that is left, and complains of that
        param, code = call.main, "context_length_exceeded"
        message = f"the prompt leaves no room for a reply within the model's {call.limit} tokens"
    elif status == 404:
        param, code = "model", "model_not_found"
    if not code or code.isdigit():
        code = "invalid_value" if status < 500 else "internal_error"
    return ApiError(status, message, param=param or _guessed(message, call), code=code)


_TOO_LONG = ("maximum context length", "cannot be greater than max_model_len")


def _guessed(message: str, call: ForwardedCall) -> str | None:
    """The field that a message is about, where vLLM does not say: one that the body left empty,
    or one that the message speaks of."""
    if call.main in call.fields and not call.fields[call.main]:
        return call.main
    if "chat template" in message or "ChatCompletionContentPart" in message:
        return call.main
    spoken = " ".join(["", *re.findall(r"\w+", message.replace("_", " ").lower()), ""])
    places = {name: spoken.find(f" {name.replace('_', ' ')} ") for name in call.fields}
    return min((name for name in places if places[name] >= 0), key=places.__getitem__, default=None)


_FORMS = ("structured_outputs", "response_format", "text", "tools")


def blamed(error: Exception, call: ForwardedCall) -> Exception:
    """A refusal of the engine's, with the field that it is about: the engine sees the schema that a
    reply is to have, but not the field that it came in."""
    if not isinstance(error, ParamError) or error.param != "prompt":
        return error
    if not any(word in str(error).lower() for word in ("grammar", "regex", "schema")):
        return error
    param = next((name for name in _FORMS if call.fields.get(name)), error.param)
    return ParamError(param, str(error))
