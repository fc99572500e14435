"""Between our nouns and vLLM's: sampling parameters in, chunks out."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from copy import copy
from typing import Any, NamedTuple

import msgspec

from llmserve.core.types import (
    Chunk,
    FinishReason,
    PromptLogprobs,
    Request,
    SamplingParams,
    Structured,
    TokenLogprob,
)


class Payload(NamedTuple):
    """vLLM's own objects inside a `core.Request`, when it comes from vLLM's own endpoint."""

    prompt: Any
    params: Any
    options: dict[str, Any]
    """Further keywords of AsyncLLM.generate, which are those of AsyncLLM.add_request."""

    @property
    def key(self) -> Hashable | None:
        """What the reply depends on, where it depends on nothing else: text in, no chance."""
        certain = self.params.temperature == 0 or self.params.seed is not None
        if not certain or set(self.prompt) - _PLAIN or self.options.get("lora_request") is not None:
            return None
        # some of vLLM's parameters are lists and objects: their reprs show all of them
        found = repr(msgspec.structs.asdict(self.params))
        return (*self.prompt["prompt_token_ids"], found)

    def copied(self, raw: Any) -> Any:
        """A RequestOutput with lists of its own, as `RequestOutput.add` extends them in place."""
        made = copy(raw)
        made.outputs = [copy(part) for part in raw.outputs]
        for part in made.outputs:
            part.token_ids = list(part.token_ids)
            part.logprobs = copy(part.logprobs)
        return made

    def joined(self, raws: Sequence[Any]) -> Any:
        whole, *others = raws
        for other in others:
            whole.add(other, aggregate=True)
        return whole


_PLAIN = {"type", "prompt", "prompt_token_ids", "prompt_token_offsets", "arrival_time"}
"""Fields of a rendered prompt that hold text alone."""


FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "abort": "abort",
    "error": "error",
    "repetition": "stop",
}


def to_payload(request: Request) -> Payload:
    """Of a request that did not come from vLLM's own endpoint."""
    from vllm.inputs.engine import tokens_input

    return Payload(tokens_input(list(request.prompt_ids)), to_params(request.sampling), {})


def to_params(sampling: SamplingParams) -> Any:
    """A vllm.SamplingParams that yields what is new with each output."""
    from vllm import SamplingParams as VllmParams
    from vllm.sampling_params import RequestOutputKind

    return VllmParams(
        max_tokens=sampling.max_tokens or 1,  # vLLM computes no prompt alone: `to_chunk`
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=None if sampling.seed is None else sampling.seed % 2**63,
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        skip_special_tokens=sampling.skip_special_tokens,
        include_stop_str_in_output=sampling.include_stop_str_in_output,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        min_p=sampling.min_p,
        min_tokens=sampling.min_tokens,
        logit_bias=dict(sampling.logit_bias) or None,
        structured_outputs=_form(sampling.structured_outputs),
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,  # nobody else holds it
    )


def _form(asked: Structured | None) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    if asked is None:
        return None
    value = json.loads(asked.text) if asked.kind == "choice" else asked.text
    return StructuredOutputsParams(**{asked.kind: value})


def to_chunk(output: Any, *, first: bool, raw: bool, prompt_alone: bool = False) -> Chunk:
    """From a vllm RequestOutput of one sequence; `raw` passes that on, for vLLM's own endpoint.

    prompt_alone: leave out the token that vLLM had to generate.
    """
    part = output.outputs[0]
    found = None if raw else output.prompt_logprobs
    prompt_logprobs = _prompt_logprobs(output.prompt_token_ids, found)
    if prompt_alone:
        return Chunk(
            logprobs=None if part.logprobs is None else (),
            finish_reason=None if part.finish_reason is None else "length",
            prompt_logprobs=prompt_logprobs,
        )
    ids = tuple(part.token_ids)
    return Chunk(
        text=part.text,
        token_ids=ids,
        logprobs=None if part.logprobs is None else _logprobs(ids, part.logprobs),
        finish_reason=None if part.finish_reason is None else FINISH[str(part.finish_reason)],
        stop_reason=part.stop_reason,
        cached_tokens=(output.num_cached_tokens or 0) if first else 0,
        prompt_logprobs=prompt_logprobs,
        raw=output if raw else None,
    )


def _prompt_logprobs(ids: Sequence[int], found: Any) -> PromptLogprobs | None:
    """vLLM gives them once, and an empty list from then on."""
    if not found:
        return None
    return tuple(
        None
        if among is None
        else TokenLogprob(token, among[token].logprob, _sorted(among), among[token].rank)
        for token, among in zip(ids, found, strict=True)
    )


def _logprobs(ids: tuple[int, ...], found: Any) -> tuple[TokenLogprob, ...]:
    """vLLM reports the chosen token beside the likeliest, once where it is one of them."""
    return tuple(
        TokenLogprob(token, among[token].logprob, _sorted(among))
        for token, among in zip(ids, found, strict=True)
    )


def _sorted(among: Any) -> tuple[tuple[int, float], ...]:
    found = sorted(among.items(), key=lambda item: -item[1].logprob)
    return tuple((token, one.logprob) for token, one in found)
