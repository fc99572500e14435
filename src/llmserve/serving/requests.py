"""The one maker of a `Request`, and requests from a cell: from a prompt to it, and from its outcome
back to text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import msgspec

from llmserve.core import bounds
from llmserve.core.bounds import BOUNDS, SENDER
from llmserve.core.types import (
    Outcome,
    ParamError,
    ParamTypeError,
    Request,
    SamplingParams,
    Structured,
    blame,
    settle,
)
from llmserve.core.validation import meant, plain, shown, wholes
from llmserve.engines.base import ChecksSchemas
from llmserve.engines.tokenizer import ChatOptions
from llmserve.serving.tokenize import tokenised

if TYPE_CHECKING:
    from llmserve.engines.base import EngineInfo
    from llmserve.serving.service import Service
    from llmserve.serving.stream import Stream

Prompt = str | Sequence[Mapping[str, object]]

_CONTEXT = "This model's maximum context length"
_TOO_LONG = "The prompt is too long for that: shorten it, or ask for less."
_FIELDS = frozenset(SamplingParams.__struct_fields__)


class ContextExceeded(ParamError):
    """A prompt, or a prompt and its reply, have more tokens than the model's context."""


class Reply(str):
    """The generated text, with how it came about in `outcome`. Shows as Markdown in a notebook."""

    outcome: Outcome

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        reply = cls(outcome.text)
        reply.outcome = outcome
        return reply

    def _repr_markdown_(self) -> str:
        return str(self)


class Sender(msgspec.Struct, frozen=True):
    """The tenant that a request counts for, its priority, and when its first token is due.

    Built with a value that is none or out of its range it raises ParamError.
    """

    priority: int = 0
    tenant: str = "default"
    ttft_slo_ms: float | None = None
    """None takes what is agreed with the tenant, and else the knob."""

    def __post_init__(self) -> None:
        settle(self, bounds.SENDER)


ANYONE = Sender()


def make_request(
    id: str,
    prompt_ids: Sequence[int],
    sampling: SamplingParams,
    *,
    arrival: float,
    sender: Sender = ANYONE,
    choices: int = 1,
    payload: Any = None,
) -> Request:
    """The one maker of a request, whichever entry point it came by. Its parts are checked: a
    SamplingParams and a Sender out of their bounds cannot be built."""
    return Request(
        id=id,
        prompt_ids=tuple(prompt_ids),
        sampling=sampling,
        arrival=arrival,
        priority=sender.priority,
        tenant=sender.tenant,
        ttft_slo_ms=sender.ttft_slo_ms,
        choices=choices,
        payload=payload,
    )


def room_left(prompt_tokens: int, info: EngineInfo, param: str) -> int:
    """Tokens that the context has left for a reply; ContextExceeded, which names `param`, where
    there are none."""
    limit = info.max_model_len
    if prompt_tokens >= limit:
        asked = f"the prompt's {prompt_tokens:,} leave no room to answer"
        raise ContextExceeded(param, over_context(limit, asked))
    return limit - prompt_tokens


def reply_tokens(
    requested: object, prompt_tokens: int, info: EngineInfo, param: str, *,
    called: str = "max_tokens", none: bool = False,
) -> int:  # fmt: skip
    """The checked `max_tokens` of a request. ParamError where they are no number or out of bounds,
    ContextExceeded where they do not fit behind the prompt.

    called: the field's name where it came in. none: they may be 0, for the prompt alone is of
    interest.
    """
    room, own = room_left(prompt_tokens, info, param), plain(requested)
    if none and type(own) is int and own == 0:
        return 0
    beyond = type(own) is int and own > room
    tokens: int = own if beyond else read_param("max_tokens", own, called)
    if tokens > room:
        asked = f"the prompt has {prompt_tokens:,} and {called} asks for {shown(tokens)} more"
        raise ContextExceeded(param, over_context(info.max_model_len, asked))
    return tokens


def over_context(limit: int, asked: str) -> str:
    """The sentence by which clients know that a prompt is too long: OpenAI's own beginning, and an
    end that LangChain looks for where a client shows it no code."""
    return f"{_CONTEXT} is {limit} tokens, but {asked}. {_TOO_LONG}"


def as_over_context(limit: int, said: str) -> str:
    """The same sentence of what an engine's own application said."""
    if said.startswith(_CONTEXT):
        return f"{said} {_TOO_LONG}"
    return over_context(limit, f"the engine says: {said.rstrip('.')}")


def check_tokens(sampling: SamplingParams, info: EngineInfo) -> None:
    """ParamError for a token outside the vocabulary: an engine indexes by them unseen."""
    if sampling.stop_token_ids:
        known_tokens(sampling.stop_token_ids, info, "stop_token_ids")
    if sampling.logit_bias:
        known_tokens([token for token, _ in sampling.logit_bias], info, "logit_bias")


def known_tokens(ids: Sequence[int], info: EngineInfo, param: str) -> tuple[int, ...]:
    """`ids`, each of them in the vocabulary."""
    try:
        return wholes("a token id", ids, 0, (info.vocab_size or 2**31) - 1)
    except ValueError as error:
        raise blame(param, error) from None


def request_of(service: Service, prompt: Prompt, options: Mapping[str, Any]) -> Request:
    """Make a cell's request. ParamError for an unknown or wrong option, an empty or too long
    prompt.

    max_tokens defaults to 256, or to what the context has left after the prompt.
    """
    given = dict(options)
    sender = Sender(**{name: given.pop(name) for name in SENDER if name in given})
    raw = bool(given.pop("raw", False))
    if unknown := given.keys() - _FIELDS:
        known = sorted({*_FIELDS, *SENDER, "raw"})
        name = min(unknown)
        raise ParamError(name, f"unknown option {name!r}{meant(name, known, called='options:')}")
    ids = _encode(service, prompt, raw)
    info = service.engine.info
    room = room_left(len(ids), info, "prompt")
    given.setdefault("max_tokens", min(256, room))
    alone = given.get("prompt_logprobs") is not None
    given["max_tokens"] = reply_tokens(given["max_tokens"], len(ids), info, "prompt", none=alone)
    sampling = read_sampling(given)
    check_tokens(sampling, info)
    if sampling.structured_outputs is not None and not isinstance(service.engine, ChecksSchemas):
        raise ParamError("structured_outputs", "this engine has no structured output")
    now = service.clock.now()
    return make_request(service.new_id("cell"), ids, sampling, arrival=now, sender=sender)


def read_param(name: str, value: object, called: str | None = None) -> Any:
    """A number of the table by its name; ParamError in a sentence, which names it as `called`."""
    try:
        return BOUNDS[name].read(value, called=called or "")
    except ValueError as error:
        raise blame(called or name, error) from None


def read_sampling(given: Mapping[str, Any]) -> SamplingParams:
    """Read sampling; ParamError where a value is none or out of range. A schema may be a
    mapping."""
    form = given.get("structured_outputs")
    if form is None or isinstance(form, Structured):
        return SamplingParams(**given)
    try:
        form = msgspec.convert(form, Structured)
    except msgspec.ValidationError as error:
        reason = f"structured_outputs: {error}"
        raise ParamTypeError("structured_outputs", reason) from None
    return SamplingParams(**{**given, "structured_outputs": form})


async def ask(service: Service, prompt: Prompt, options: Mapping[str, Any]) -> Stream:
    """Submit a cell's request. Raises as `request_of` and `Service.submit` do."""
    length = len(prompt if isinstance(prompt, str) else repr(prompt))
    request = await tokenised(length, lambda text: request_of(service, text, options), prompt)
    await service.check_form(request.sampling)
    return service.submit(request)


async def collect(service: Service, prompt: Prompt, options: Mapping[str, Any]) -> Outcome:
    return await (await ask(service, prompt, options)).collect()


async def pieces_of(
    service: Service, prompt: Prompt, options: Mapping[str, Any]
) -> AsyncGenerator[str, None]:
    """The reply's text as it comes. Closing this cancels the request."""
    stream = await ask(service, prompt, options)
    try:
        async for chunk in stream:
            if text := chunk.text + "".join(more.text for more in stream.ready()):
                yield text
    finally:
        stream.cancel()


async def next_piece(pieces: AsyncGenerator[str, None]) -> str | None:
    return await anext(pieces, None)


def prompt_text(service: Service, request_id: str) -> str | None:
    """The prompt of a request that waits or runs, as text; None where it is not here."""
    request = service.find(request_id)
    return None if request is None else service.engine.tokenizer.decode(request.prompt_ids)


def _encode(service: Service, prompt: Prompt, raw: bool) -> list[int]:
    tokenizer = service.engine.tokenizer
    options = ChatOptions(allow_special_tokens=service.allow_special_tokens)
    if not prompt:
        raise ParamError("prompt", "the prompt is empty")
    if not isinstance(prompt, str):
        return tokenizer.chat(_messages(prompt), options)
    if raw:
        return tokenizer.encode(prompt)
    try:
        return tokenizer.chat([{"role": "user", "content": prompt}], options)
    except ValueError:  # a base model: it has no chat template
        return tokenizer.encode(prompt)


def _messages(prompt: Any) -> Sequence[Mapping[str, object]]:
    if isinstance(prompt, Sequence) and all(isinstance(one, Mapping) for one in prompt):
        return prompt
    example = '[{"role": "user", "content": "Hello"}]'
    raise ParamError("prompt", f"a prompt is text, or a list of messages like {example}")
