"""A model folder's tokenizer and chat template, without importing transformers where possible.

`tokenizer.json` says everything for the classes in PLAIN; the others change it while loading, so
those are left to transformers' AutoTokenizer, which costs the kernel seconds once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Protocol

from llmserve.engines.tokenizer import PLAIN_CHAT, ChatOptions

PLAIN = frozenset({
    "PreTrainedTokenizerFast", "TokenizersBackend", "Qwen2Tokenizer", "Qwen2TokenizerFast",
})


class ModelTokenizer(Protocol):
    """`engines.Tokenizer`, and what it is made of."""

    backend: Any
    """A tokenizers.Tokenizer, or transformers' own where there is none."""

    @property
    def has_chat(self) -> bool: ...

    @property
    def chat_template(self) -> str | None: ...

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def chat(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
    ) -> list[int]: ...


def open_tokenizer(folder: Path, trust_remote_code: bool = False) -> ModelTokenizer:
    settings = _read_json(folder / "tokenizer_config.json")
    bent = settings.get("add_bos_token") or settings.get("add_eos_token")
    plain = settings.get("tokenizer_class") in PLAIN and not bent
    if plain and (folder / "tokenizer.json").is_file():
        return FolderTokenizer(folder, settings)
    return TransformersTokenizer(folder, trust_remote_code)


_LONG = 20_000
"""Characters or ids from which one is read as a batch of one: alone it keeps the interpreter to
itself in whatever thread, and 80,000 tokens stopped all streams for a fifth of a second."""


class FolderTokenizer:
    """By the `tokenizers` library, templates rendered as transformers renders them."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self.backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.backend.no_truncation()
        self.backend.no_padding()
        self.chat_template = source = _template_source(folder, settings)
        self._template = None if source is None else compile_template(source)
        self._words = _special_words(settings)

    @property
    def has_chat(self) -> bool:
        return self._template is not None

    def encode(self, text: str) -> list[int]:
        return self._ids(text)

    def decode(self, ids: Sequence[int]) -> str:
        if len(ids) < _LONG:
            text: str = self.backend.decode(list(ids), skip_special_tokens=True)
        else:
            text = self.backend.decode_batch([list(ids)], skip_special_tokens=True)[0]
        return text

    def chat(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
    ) -> list[int]:
        text = render(self._template, self._words, messages, options)
        return self._ids(text, add_special_tokens=False)

    def _ids(self, text: str, **options: bool) -> list[int]:
        if len(text) < _LONG:
            ids: list[int] = self.backend.encode(text, **options).ids
        else:
            ids = self.backend.encode_batch_fast([text], **options)[0].ids
        return ids


class TransformersTokenizer:
    """By AutoTokenizer, for every other kind."""

    def __init__(self, folder: Path, trust_remote_code: bool) -> None:
        from transformers import AutoTokenizer

        self._auto = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=trust_remote_code
        )
        self.backend = getattr(self._auto, "backend_tokenizer", self._auto)

    @property
    def has_chat(self) -> bool:
        return self._auto.chat_template is not None

    @property
    def chat_template(self) -> str | None:
        found = self._auto.chat_template
        return found if isinstance(found, str | None) else found.get("default")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._auto(text)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._auto.decode(list(ids), skip_special_tokens=True)
        return text

    def chat(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
    ) -> list[int]:
        from jinja2 import TemplateError

        try:
            ids: list[int] = self._auto.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in options.tools] or None,
                add_generation_prompt=options.add_generation_prompt,
                return_dict=False,
                **options.template_kwargs,
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses this: {error}") from error
        return ids


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
        value: object, ensure_ascii: bool = False, indent: int | None = None,
        separators: tuple[str, str] | None = None, sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
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
    try:
        text: str = template.render(
            messages=[dict(message) for message in messages],
            tools=[dict(tool) for tool in options.tools] or None,
            documents=None,
            add_generation_prompt=options.add_generation_prompt,
            **{**words, **options.template_kwargs},
        )
    except (TemplateError, TypeError) as error:
        raise ValueError(f"the chat template refuses this: {error}") from error
    return text


def _template_source(folder: Path, settings: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {one["name"]: one["template"] for one in found}
        found = named.get("default")
    return found


def _special_words(settings: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and the like, as templates name them."""
    words = {}
    for name, value in settings.items():
        if name.endswith("_token"):
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                words[name] = text
    return words


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
