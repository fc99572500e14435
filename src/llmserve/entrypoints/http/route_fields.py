"""The fields of each route's body, and the header that names those which were ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from urllib.parse import quote

import msgspec

from llmserve.entrypoints.http import fields
from llmserve.entrypoints.http.caller import Claims
from llmserve.entrypoints.http.field_cures import CURES
from llmserve.entrypoints.http.fields import Fields
from llmserve.entrypoints.http.known_fields import (
    ANTHROPIC_IGNORED,
    ANTHROPIC_REFUSED,
    IGNORED,
    REFUSED,
    RESPONSES_IGNORED,
)
from llmserve.entrypoints.http.openai_responses.body import ResponsesFields
from llmserve.entrypoints.http.protocol import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
)

IGNORED_HEADER = "x-llmserve-ignored"
_MOST_NAMES, _LONGEST_NAME = 20, 80

_RESPONSES = "/v1/responses"

BODIES: Mapping[str, type[msgspec.Struct]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    _RESPONSES: ResponsesFields,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}
"""The struct that reads each route's body: its fields are the ones that the route reads."""

_ALL_IGNORED = {name: why for known in IGNORED.values() for name, why in known.items()}
_ALL_REFUSED = {name: neutral for known in REFUSED.values() for name, neutral in known.items()}


@cache
def of_route(path: str) -> Fields:
    """The fields of a route of ours."""
    read = fields.of_struct(BODIES[path])
    if path == _RESPONSES:  # its own modules judge what its objects hold
        read = read._replace(inside={})
    return _complete(path, read)


def of_engine(path: str, names: Mapping[str, Any]) -> Fields:
    """The fields of an engine's own route, which reads `names` and, as all routes, its sender."""
    claims = dict.fromkeys(Claims.__struct_fields__)
    read = fields.of_names({**claims, **names})
    if path.startswith("/v1/messages"):
        return read.without(ANTHROPIC_IGNORED)._replace(
            ignored=ANTHROPIC_IGNORED, refused=ANTHROPIC_REFUSED
        )
    return _complete(path, read.without(_ALL_IGNORED))


def _complete(path: str, read: Fields) -> Fields:
    ignored = {**_ALL_IGNORED, **(RESPONSES_IGNORED if path == _RESPONSES else {})}
    elsewhere = {
        name: other
        for other, body in reversed([*BODIES.items()])
        for name in body.__struct_fields__
    }
    return read._replace(
        ignored=ignored, refused=_ALL_REFUSED, cures=CURES, elsewhere=elsewhere
    )


def check_fields(raw: bytes, known: Fields, *, strict: bool) -> dict[str, str]:
    """Headers to add to the answer; ApiError 400 where the body asks for what is not here."""
    return _ignored(fields.check(raw, known, strict=strict))


def _ignored(unknown: Sequence[str]) -> dict[str, str]:
    """The header that names unknown fields which were ignored; empty where there are none."""
    if not unknown:
        return {}
    named = [quote(name[:_LONGEST_NAME], safe=".[]") for name in unknown[:_MOST_NAMES]]
    more = len(unknown) - len(named)
    return {IGNORED_HEADER: ", ".join([*named, f"and {more} more"] if more else named)}
