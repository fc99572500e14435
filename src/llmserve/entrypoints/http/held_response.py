"""What another application answers, held back and put right before it leaves.

Held back: until it is known whether there will be an answer or a refusal. Put right: its errors
become the error objects of all other routes, and its streams get the headers that proxies need.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

import msgspec
from starlette.types import Message, Send

from llmserve.core.types import ParamError
from llmserve.entrypoints.http.asgi import DONE, SSE_HEADERS, JsonAnswer
from llmserve.entrypoints.http.errors import SERVING_ERRORS, ApiError, as_api_error
from llmserve.serving.requests import as_over_context, over_context
from llmserve.serving.stream import Stream

_FORMS = ("structured_outputs", "response_format", "text", "tools")
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
    def form(self) -> str:
        """The field that asks for a form of the reply; a tool that must be called has one too."""
        return next((name for name in _FORMS if self.fields.get(name)), _FORMS[0])

    @property
    def counts(self) -> str:
        """The field that says how many logprobs there are."""
        return "top_logprobs" if "top_logprobs" in self.fields else "logprobs"

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
    """vLLM's error as one of ours: its own message, and the field where it says which."""
    try:
        error: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        error = {}
    error = error.get("error", error) if isinstance(error, dict) else {}
    error = error if isinstance(error, dict) else {}
    message = str(error.get("message") or error.get("detail") or body.decode(errors="replace"))
    param, code = str(error.get("param") or ""), str(error.get("code") or "")
    if param.removeprefix("body.").partition(".")[0].isdigit():  # of the list that the model reads
        param = call.main
    # what was sent as max_tokens has been checked, so vLLM can only mean what it cut it to
    cut = param == "max_tokens"
    if cut or param in ("input_tokens", "input_text") or "maximum context length" in message:
        return _context_exceeded(status, message, call, cut=cut)
    if status == 404:
        return ApiError(status, message, param="model", code="model_not_found")
    if not code or code.isdigit():
        code = "invalid_value" if status < 500 else "internal_error"
    return ApiError(status, message, param=_sent(param, call), code=code)


def _context_exceeded(status: int, message: str, call: ForwardedCall, *, cut: bool) -> ApiError:
    if cut:
        message = over_context(call.limit, "the prompt leaves no room for a reply")
    else:
        message = as_over_context(call.limit, message)
    return ApiError(status, message, param=call.main, code="context_length_exceeded")


def _sent(param: str, call: ForwardedCall) -> str | None:
    """The path in the body that vLLM's name means: `body.messages.0.Developer.content` is
    `messages[0].content`. None where there is no such field in it."""
    first, *parts = param.removeprefix("body.").split(".")
    first = {"structured_outputs": call.form, "logprobs": call.counts}.get(first, first)
    if first not in call.fields:
        return None
    path, value = first, call.fields[first]
    for part in parts:
        if isinstance(value, dict) and part in value:
            path, value = f"{path}.{part}", value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            path, value = f"{path}[{part}]", value[int(part)]
    return path


def blamed(error: Exception, call: ForwardedCall) -> Exception:
    """A refusal of the engine's, with the field that it is about as it was sent: the engine sees
    the schema that a reply is to have, but not the field that it came in."""
    if not isinstance(error, ParamError):
        return error
    name = {"structured_outputs": call.form, "logprobs": call.counts}.get(error.param, error.param)
    return error if name == error.param else ParamError(name, str(error))
