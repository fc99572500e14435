"""How models write a call: the texts around its name and its arguments. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


class CallFormat(msgspec.Struct, frozen=True, kw_only=True):
    """One family's way to write calls: `begin`, calls with `between` among them, `end`. A call is
    `{"name": NAME, ARGUMENTS_KEY: {…}}`."""

    name: str
    begin: str
    """Opens the calls; "" where a reply that starts with a call has no other mark."""
    opening: str = ""
    """What follows that in every reply, before the first call's name."""
    between: str
    end: str
    marks: tuple[str, ...] = ()
    """Parts of these texts that may be tokens of their own."""
    arguments_key: str = "arguments"
    several: bool = True
    """Whether one reply may hold more than one call."""
    id_length: int | None = None
    """Letters and digits of an id that the family's template takes; None for any."""

    def written(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """Calls, each with `name` and `arguments`, as a model would have written them."""
        found = [{"name": call["name"], self.arguments_key: call["arguments"]} for call in calls]
        texts = [json.dumps(call, ensure_ascii=False) for call in found]
        before = self.opening.partition("{")[0]
        return self.begin + before + self.between.join(texts) + self.end


HERMES = CallFormat(
    name="hermes",
    begin="<tool_call>",
    opening='\n{"name": "',
    between="\n</tool_call>\n<tool_call>\n",
    end="\n</tool_call>",
    marks=("<tool_call>", "</tool_call>"),
)
"""Hermes, Qwen and many others; also for models whose template shows no tools."""
LLAMA = CallFormat(
    name="llama",
    begin="",
    opening='{"name": "',
    between="",
    end="",
    arguments_key="parameters",
    several=False,
)
"""Llama 3's JSON: the reply is the call."""
MISTRAL = CallFormat(
    name="mistral",
    begin="[TOOL_CALLS]",
    opening='[{"name": "',
    between=", ",
    end="]",
    marks=("[TOOL_CALLS]",),
    id_length=9,
)
DEFAULT = HERMES

_SIGNS = (
    (MISTRAL, ("[TOOL_CALLS]", "[AVAILABLE_TOOLS]")),
    (HERMES, ("<tool_call>",)),
    (LLAMA, ('"parameters": ', "<|eot_id|>")),
)
"""What a chat template holds that asks for calls in a format."""


def format_of(template: str | None) -> CallFormat | None:
    """The format that a chat template asks for; None where it shows no tools, or in a form that is
    not known here."""
    if template is None or "tools" not in template:
        return None
    return next((form for form, signs in _SIGNS if all(one in template for one in signs)), None)
