"""Chat templates, rendered as transformers renders them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from llmserve.engines.tokenizer import PLAIN_CHAT, ChatOptions

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of the last message while it is rendered."""


def compile_template(source: str) -> Any:
    """A chat template in the sandbox, with the extensions and names that transformers gives it."""
    from jinja2 import TemplateError, ext, nodes
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(ext.Extension):
        """{% generation %} marks the assistant's text for training; serving just renders it."""

        tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def render(
    template: Any,
    words: Mapping[str, str],
    messages: Sequence[Mapping[str, object]],
    options: ChatOptions = PLAIN_CHAT,
) -> str:
    from jinja2 import TemplateError

    if template is None:
        raise ValueError("the model has no chat template")
    if not messages:
        raise ValueError("a conversation needs at least one message")
    turns = [dict(message) for message in messages]
    if options.continue_final_message:
        turns[-1]["content"] = f"{_to_continue(turns[-1], options)}{_TAG}"
    try:
        text: str = template.render(
            messages=turns,
            tools=[dict(tool) for tool in options.tools] or None,
            documents=None,
            add_generation_prompt=options.add_generation_prompt,
            **{**words, **options.template_kwargs},
        )
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the chat template refuses this: {error}") from error
    return _cut(text) if options.continue_final_message else text


def _to_continue(message: Mapping[str, object], options: ChatOptions) -> str:
    content = message.get("content")
    if options.add_generation_prompt:
        raise ValueError("continue_final_message and add_generation_prompt exclude each other")
    if not isinstance(content, str):
        raise ValueError("continue_final_message needs a last message with text")
    return content


def _cut(text: str) -> str:
    """The text up to the tag, as transformers cuts it: where the template trims the last message,
    it is trimmed."""
    at = text.rfind(_TAG.strip())
    if at < 0:
        raise ValueError("the chat template leaves the last message out: it cannot be continued")
    return text[:at] if text[at : at + len(_TAG)] == _TAG else text[:at].rstrip()
