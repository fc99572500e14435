"""What the kernel and an engine's process say to each other, as msgpack. The first message, which
says what to load, is each engine's own.

The child answers with one `Stepped` per engine step and never waits for the kernel.
"""

from __future__ import annotations

import msgspec

from llmserve.core.knobs import Knobs
from llmserve.core.types import (
    FinishReason,
    PromptLogprobs,
    SamplingParams,
    StepRecord,
    TokenLogprob,
)


class SubmitRequest(msgspec.Struct, frozen=True, tag=True):
    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams


class Abort(msgspec.Struct, frozen=True, tag=True):
    id: str


class Retune(msgspec.Struct, frozen=True, tag=True):
    """New knobs, within the ceilings; answered by `Adopted` with the same number."""

    number: int
    knobs: Knobs


class ResetCache(msgspec.Struct, frozen=True, tag=True):
    """Forget cached prefixes; answered by `Adopted` with the same number."""

    number: int


class Weigh(msgspec.Struct, frozen=True, tag=True):
    """Answered by `Weighed` with the same number."""

    number: int


ToChild = SubmitRequest | Abort | Retune | ResetCache | Weigh


class Ready(msgspec.Struct, frozen=True, tag=True):
    folder: str
    """Where the tokenizer's files are; "" where it has none."""
    max_model_len: int
    kv_capacity_tokens: int
    vocab_size: int
    device: str
    dtype: str
    details: dict[str, str]
    structured_outputs: bool = False


class Busy(msgspec.Struct, frozen=True, tag=True):
    """With what loading is busy, should it take long; "" when that is over."""

    what: str


class Reformed(msgspec.Struct, frozen=True, tag=True):
    """The model computes in another form from now on; what changed of `Ready.details`."""

    details: dict[str, str]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Loading failed; the process is about to end."""

    message: str


class Adopted(msgspec.Struct, frozen=True, tag=True):
    number: int
    step: int
    """The first step planned after it."""


class Weighed(msgspec.Struct, frozen=True, tag=True):
    number: int
    device_bytes: int
    """On GPUs, by the process's own count."""


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What a step added to one request, as in `Chunk`."""

    id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    """Why this request failed, where finish_reason is "error"."""
    cached_tokens: int = 0
    """Sent once, with the first token."""
    prompt_logprobs: PromptLogprobs | None = None
    """Sent once, with the first token, or alone where there is none."""
    param: str | None = None
    """The request's parameter that made it fail, where it is one's doing."""


class Stepped(msgspec.Struct, frozen=True, tag=True):
    """What a step brought. On its way most of it is columns, for most of it is one token and its
    text for each request: see `packed`."""

    deltas: list[Delta]
    record: StepRecord | None = None
    """None where requests failed before any step."""
    ids: list[str] = []
    texts: list[str] = []
    tokens: list[int] = []


def packed(message: Stepped) -> Stepped:
    """The same, with the deltas that are one token and its text as columns."""
    ids: list[str] = []
    texts: list[str] = []
    tokens: list[int] = []
    others: list[Delta] = []
    for delta in message.deltas:
        if (
            len(delta.token_ids) == 1
            and delta.finish_reason is None
            and delta.logprobs is None
            and delta.prompt_logprobs is None
            and not delta.cached_tokens
        ):
            ids.append(delta.id)
            texts.append(delta.text)
            tokens.append(delta.token_ids[0])
        else:
            others.append(delta)
    return Stepped(others, message.record, ids, texts, tokens)


FromChild = Busy | Ready | Reformed | Failed | Adopted | Weighed | Stepped
