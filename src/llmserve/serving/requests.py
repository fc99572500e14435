"""From what a user types in a cell to a `Request`, and from its outcome back to text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

import msgspec

from llmserve.core.tenants import NAMES, is_name
from llmserve.core.types import Outcome, ParamError, Request, SamplingParams
from llmserve.core.validation import plain
from llmserve.engines.base import ChecksSchemas
from llmserve.serving.tokenize import tokenised

if TYPE_CHECKING:
    from llmserve.serving.service import Service
    from llmserve.serving.stream import Stream

Prompt = str | Sequence[Mapping[str, object]]

_FIELDS = frozenset(SamplingParams.__struct_fields__)


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


def make_request(service: Service, prompt: Prompt, options: Mapping[str, Any]) -> Request:
    """Raises ParamError for an unknown or wrong option, an empty or too long prompt.

    max_tokens defaults to 256, or to what the context has left after the prompt.
    """
    options = {name: plain(value) for name, value in options.items()}
    raw = bool(options.pop("raw", False))
    priority, tenant = options.pop("priority", 0), options.pop("tenant", "default")
    slo_ms = options.pop("ttft_slo_ms", None)
    if not is_name(str(tenant)):
        raise ParamError("tenant", f"{NAMES}, not {tenant!r}")
    if not isinstance(priority, Integral):
        raise ParamError("priority", f"priority is a whole number, not {priority!r}")
    if slo_ms is not None and not (isinstance(slo_ms, Real) and 0 < float(slo_ms) < 1e9):
        raise ParamError("ttft_slo_ms", f"ttft_slo_ms must be above 0, not {slo_ms!r}")
    if unknown := options.keys() - _FIELDS:
        known = ", ".join(sorted(_FIELDS | {"priority", "tenant", "ttft_slo_ms", "raw"}))
        raise ParamError(min(unknown), f"unknown option {min(unknown)!r}; options: {known}")
    ids = _encode(service, prompt, raw)
    left = service.engine.info.max_model_len - len(ids)
    if left < 1:
        raise ParamError("prompt", f"the prompt's {len(ids)} tokens leave no room to answer")
    options.setdefault("max_tokens", min(256, left))
    if isinstance(options.get("stop"), str):
        options["stop"] = (options["stop"],)
    if isinstance(options.get("logit_bias"), Mapping):
        options["logit_bias"] = tuple(options["logit_bias"].items())
    try:
        sampling = msgspec.convert(options, SamplingParams)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ParamError):
            raise error.__cause__ from None
        raise ParamError("sampling", str(error)) from None
    if sampling.structured_outputs is not None and not isinstance(service.engine, ChecksSchemas):
        raise ParamError("structured_outputs", "this engine cannot hold a reply to a form")
    if sampling.max_tokens > left:
        raise ParamError(
            "max_tokens",
            f"{len(ids)} prompt tokens and max_tokens={sampling.max_tokens} exceed the context "
            f"of {service.engine.info.max_model_len} tokens",
        )
    return Request(
        id=service.new_id("cell"),
        prompt_ids=tuple(ids),
        sampling=sampling,
        arrival=service.clock.now(),
        priority=int(priority),
        tenant=str(tenant),
        ttft_slo_ms=None if slo_ms is None else float(slo_ms),
    )


async def ask(service: Service, prompt: Prompt, options: Mapping[str, Any]) -> Stream:
    """Raises as `make_request` and `Service.submit` do."""
    length = len(prompt if isinstance(prompt, str) else repr(prompt))
    request = await tokenised(length, lambda text: make_request(service, text, options), prompt)
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
    """What a request that waits or runs asked, as text; None where it is not here."""
    request = service.find(request_id)
    return None if request is None else service.engine.tokenizer.decode(request.prompt_ids)


def _encode(service: Service, prompt: Prompt, raw: bool) -> list[int]:
    tokenizer = service.engine.tokenizer
    if not prompt:
        raise ParamError("prompt", "the prompt is empty")
    if not isinstance(prompt, str):
        return tokenizer.chat(_messages(prompt))
    if raw:
        return tokenizer.encode(prompt)
    try:
        return tokenizer.chat([{"role": "user", "content": prompt}])
    except ValueError:  # a base model: it has no chat template
        return tokenizer.encode(prompt)


def _messages(prompt: Any) -> Sequence[Mapping[str, object]]:
    if isinstance(prompt, Sequence) and all(isinstance(one, Mapping) for one in prompt):
        return prompt
    example = '[{"role": "user", "content": "Hello"}]'
    raise ParamError("prompt", f"a prompt is text, or a list of messages like {example}")
