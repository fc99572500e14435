"""One request's tools, put together: what the template is given, what may be drawn, and how the
reply is read. Chat and /v1/responses use it alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from llmserve.core.types import Structured
from llmserve.entrypoints.http.tools.choice import ToolChoice
from llmserve.entrypoints.http.tools.formats import CallFormat
from llmserve.entrypoints.http.tools.parser import ReplyParser


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """The tools of one request, in the format of its model."""

    choice: ToolChoice
    format: CallFormat
    by_template: bool
    """Whether the model's own chat template shows tools and calls; else we write them ourselves."""

    @property
    def shown(self) -> tuple[Mapping[str, Any], ...]:
        """What the chat template is given (`ChatOptions.tools`)."""
        return tuple(tool.described for tool in self.choice.tools) if self.by_template else ()

    def parser(self) -> ReplyParser | None:
        """A new one for one reply; None where the reply holds no calls."""
        return ReplyParser(self.format) if self.choice.callable else None

    def constraint(self, answer: Structured | None = None) -> Structured | None:
        """What a reply must match, which else would be `answer` (the request's response_format)."""
        raise NotImplementedError
