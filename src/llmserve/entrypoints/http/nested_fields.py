"""The fields of objects within a body: of messages, their parts, tools and forms. Data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from llmserve.entrypoints.http.known_fields import Neutral
from llmserve.entrypoints.http.structured import KINDS


class Inside(NamedTuple):
    """The fields of an object within a body, where no struct reads it whole."""

    read: frozenset[str] = frozenset()
    ignored: Mapping[str, str] = {}
    refused: Mapping[str, Neutral] = {}
    cures: Mapping[str, str] = {}


INSIDE: Mapping[str, Inside] = {
    "messages": Inside(
        ignored={
            "annotations": "of the reply that it was",
            "cache_control": "where a prompt's beginning is cached",
            "created": "of the reply that it was",
            "finish_reason": "of the reply that it was",
            "id": "of the reply that it was",
            "metadata": "a note of the client's",
            "parsed": "its content, as the client has read it",
            "provider_specific_fields": "a note of the client's",
            "stop_reason": "of the reply that it was",
            "weight": "of training",
        },
        refused={
            "audio": (),
            "function_call": (),
            "images": ([],),
            "partial": (False,),
            "prefix": (False,),
            "reasoning": ("",),
            "reasoning_content": ("",),
            "reasoning_details": ([],),
            "refusal": ("",),
            "task": (),
            "thinking": ("",),
            "thinking_blocks": ([],),
            "tools": ([],),
        },
    ),
    "messages.content": Inside(
        ignored={
            "annotations": "of the reply that it was",
            "cache_control": "where a prompt's beginning is cached",
            "prompt_cache_breakpoint": "where a prompt's beginning is cached",
        },
        refused={
            "audio_url": (), "file": (), "image": (), "image_url": (), "input_audio": (),
            "refusal": ("",), "source": (), "thinking": (), "video": (), "video_url": (),
        },
    ),
    "messages.tool_calls": Inside(
        read=frozenset({"id", "type", "function"}),
        ignored={
            "index": "of the stream that it came in",
            "provider_specific_fields": "a note of the client's",
        },
        refused={"custom": ()},
    ),
    "messages.tool_calls.function": Inside(
        read=frozenset({"name", "arguments"}),
        ignored={
            "parsed_arguments": "its arguments, as the client has read them",
            "provider_specific_fields": "a note of the client's",
        },
    ),
    "stream_options": Inside(
        ignored={"include_obfuscation": "pads events"},
    ),
    "response_format": Inside(
        read=frozenset({"type", "json_schema"}),
        refused={"format": (), "schema": (), "structures": ([],), "triggers": ([],), "value": ()},
        cures={"schema": "the schema is response_format.json_schema.schema"},
    ),
    "response_format.json_schema": Inside(
        read=frozenset({"schema", "strict"}),
        ignored={"description": "of the form, for its reader", "name": "of the form"},
    ),
    "structured_outputs": Inside(
        read=frozenset(KINDS),
        refused={
            "backend": (), "disable_additional_properties": (False,),
            "disable_any_whitespace": (False,), "disable_fallback": (False,),
            "structural_tag": (), "whitespace_pattern": (),
        },
    ),
    "tools": Inside(
        read=frozenset({"type", "function"}),
        ignored={"cache_control": "where a prompt's beginning is cached"},
        refused={"custom": (), "defer_loading": (False,)},
    ),
    "tools.function": Inside(
        read=frozenset({"name", "description", "parameters", "strict"}),
        ignored={"cache_control": "where a prompt's beginning is cached"},
        refused={"defer_loading": (False,)},
    ),
}
"""By their path. A struct of ours that reads such an object says itself what it reads."""
