"""How models write a call: the texts around its name and its arguments. Pure."""

from __future__ import annotations

import msgspec


class CallFormat(msgspec.Struct, frozen=True, kw_only=True):
    """One family's way to write calls: `begin`, calls with `between` among them, `end`. A call is
    `{"name": NAME, ARGUMENTS_KEY: {…}}`."""

    name: str
    begin: str
    """Opens the calls; "" where a reply that starts with a call has no other mark."""
    between: str
    end: str
    arguments_key: str = "arguments"
    several: bool = True
    """Whether one reply may hold more than one call."""
    id_length: int | None = None
    """Letters and digits of an id that the family's template takes; None for any."""


HERMES = CallFormat(
    name="hermes",
    begin="<tool_call>",
    between="\n</tool_call>\n<tool_call>\n",
    end="\n</tool_call>",
)
"""Hermes, Qwen and many others; also for models whose template shows no tools."""
LLAMA = CallFormat(
    name="llama", begin="", between="", end="", arguments_key="parameters", several=False
)
"""Llama 3's JSON: the reply is the call."""
MISTRAL = CallFormat(name="mistral", begin="[TOOL_CALLS]", between=", ", end="]", id_length=9)
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
