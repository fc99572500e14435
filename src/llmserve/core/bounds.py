"""What each field of a request may be: one table for every entry point that makes one.

A reader takes a value as a cell, JSON or a command line gives it, and gives it as Python's own.
ValueError says in a sentence what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llmserve.core.validation import Bounds, flag, mistyped, number, plain, text, texts, wholes

MOST_STOPS = 16
LONGEST_TENANT = 128
MOST_TOKEN_ID = 2**31 - 1

BOUNDS: Mapping[str, Bounds] = {
    bounds.name: bounds
    for bounds in (
        Bounds("max_tokens", 1, 1_000_000, "tokens"),
        Bounds("min_tokens", 0, 1_000_000, "tokens"),
        Bounds("temperature", 0, 100, kind="real"),
        Bounds("top_p", 0, 1, kind="real", above=True),
        Bounds("top_k", 0, 10_000_000),
        Bounds("min_p", 0, 1, kind="real"),
        Bounds("seed", -(2**63), 2**64 - 1, optional=True),
        Bounds("logprobs", 0, 20, optional=True),
        Bounds("prompt_logprobs", 0, 20, optional=True),
        Bounds("presence_penalty", -2, 2, kind="real"),
        Bounds("frequency_penalty", -2, 2, kind="real"),
        Bounds("repetition_penalty", 0, 100, kind="real", above=True),
        Bounds("logit_bias", -100, 100, kind="real"),
        Bounds("n", 1, 128),
        Bounds("priority", -(2**31 - 1), 2**31 - 1),
        Bounds("ttft_slo_ms", 1, 3_600_000, "ms", kind="real", optional=True),
    )
}
"""Numbers. `n` is OpenAI's, and its largest."""


def _max_tokens(value: object) -> Any:
    """0 is for a prompt alone: SamplingParams says when."""
    own = plain(value)
    return 0 if type(own) is int and own == 0 else BOUNDS["max_tokens"].read(own)


def _top_k(value: object) -> Any:
    """-1 is vLLM's other word for the whole vocabulary."""
    own = plain(value)
    return 0 if type(own) is int and own == -1 else BOUNDS["top_k"].read(own)


def _logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    own = plain(value)
    pairs = list(own.items()) if isinstance(own, Mapping) else own
    if not isinstance(pairs, list | tuple) or any(not _is_pair(pair) for pair in pairs):
        raise mistyped("logit_bias", "token ids with a number each", own)
    bias = BOUNDS["logit_bias"]
    return tuple([(_token_id(token), bias.read(added)) for token, added in pairs])


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2


def _token_id(token: object) -> int:
    """As a number, or as the text that a name in JSON is."""
    found: int = _TOKEN.read(number(token) if isinstance(token, str) else token)
    return found


_TOKEN = Bounds("a token id of logit_bias", 0, MOST_TOKEN_ID)

SAMPLING: Mapping[str, Callable[[Any], Any]] = {
    "max_tokens": _max_tokens,
    "temperature": BOUNDS["temperature"].read,
    "top_p": BOUNDS["top_p"].read,
    "top_k": _top_k,
    "seed": BOUNDS["seed"].read,
    "stop": lambda value: texts("stop", value, MOST_STOPS),
    "stop_token_ids": lambda value: wholes("stop_token_ids", value, 0, MOST_TOKEN_ID),
    "ignore_eos": partial(flag, "ignore_eos"),
    "logprobs": BOUNDS["logprobs"].read,
    "prompt_logprobs": BOUNDS["prompt_logprobs"].read,
    "skip_special_tokens": partial(flag, "skip_special_tokens"),
    "include_stop_str_in_output": partial(flag, "include_stop_str_in_output"),
    "presence_penalty": BOUNDS["presence_penalty"].read,
    "frequency_penalty": BOUNDS["frequency_penalty"].read,
    "repetition_penalty": BOUNDS["repetition_penalty"].read,
    "min_p": BOUNDS["min_p"].read,
    "min_tokens": BOUNDS["min_tokens"].read,
    "logit_bias": _logit_bias,
}
"""Readers of a SamplingParams' fields; `structured_outputs` is no value but a schema of its own."""

SENDER: Mapping[str, Callable[[Any], Any]] = {
    "priority": BOUNDS["priority"].read,
    "tenant": lambda value: text("a tenant", value, LONGEST_TENANT, printable=True),
    "ttft_slo_ms": BOUNDS["ttft_slo_ms"].read,
}
"""Readers of what a request says of its sender. Metrics, logs and traces hold a tenant as text:
half of a surrogate pair would break them."""
