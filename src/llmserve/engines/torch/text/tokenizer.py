"""A model folder's tokenizer and chat template, without importing transformers where possible.

`tokenizer.json` says everything for the classes in PLAIN; the others change it while loading, so
those are left to transformers' AutoTokenizer, which costs the kernel seconds once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from llmserve.engines.token_bytes import TokenBytes
from llmserve.engines.tokenizer import PLAIN_CHAT, ChatOptions, settings_of
from llmserve.engines.torch.text.chat_template import compile_template, render
from llmserve.engines.torch.text.special_tokens import SpecialTokens, strings

PLAIN = frozenset({
    "PreTrainedTokenizerFast", "TokenizersBackend", "Qwen2Tokenizer", "Qwen2TokenizerFast",
})  # fmt: skip


class ModelTokenizer(Protocol):
    """`engines.Tokenizer`, and what it is made of."""

    backend: Any
    """A tokenizers.Tokenizer, or transformers' own where there is none."""

    @property
    def has_chat(self) -> bool: ...

    @property
    def chat_template(self) -> str | None: ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def token_bytes(self, token_id: int) -> bytes | None: ...
    def token_name(self, token_id: int) -> str: ...
    def settings(self) -> dict[str, Any]: ...
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
        self._bytes = TokenBytes(self.backend)
        self._settings, self.chat_template = settings, _template_source(folder, settings)
        source = self.chat_template
        self._template = None if source is None else compile_template(source)
        self._words = _special_words(settings)
        self._special = SpecialTokens(self.backend, self._words.values())

    @property
    def has_chat(self) -> bool:
        return self._template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return _ids(self.backend, text, add_special_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        if len(ids) < _LONG:
            text: str = self.backend.decode(list(ids), skip_special_tokens=True)
        else:
            text = self.backend.decode_batch([list(ids)], skip_special_tokens=True)[0]
        return text

    def token_bytes(self, token_id: int) -> bytes | None:
        return self._bytes.of(token_id)

    def token_name(self, token_id: int) -> str:
        return self._bytes.name(token_id)

    def settings(self) -> dict[str, Any]:
        source = self.chat_template
        template = {} if source is None else {"chat_template": source}
        return {**self._settings, **template}

    def chat(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
    ) -> list[int]:
        rendered = partial(render, self._template, self._words)
        if options.allow_special_tokens or not self._special.suspected(messages, options):
            return _ids(self.backend, rendered(messages, options))
        return self._special.ids(messages, options, rendered, _ids)


class TransformersTokenizer:
    """By AutoTokenizer, for every other kind."""

    def __init__(self, folder: Path, trust_remote_code: bool) -> None:
        from transformers import AutoTokenizer

        self._auto = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        backend = getattr(self._auto, "backend_tokenizer", None)
        self.backend = backend or self._auto
        self._bytes = TokenBytes(self.backend)
        special = self._auto.all_special_tokens
        self._special = None if backend is None else SpecialTokens(backend, special)

    @property
    def has_chat(self) -> bool:
        return self._auto.chat_template is not None

    @property
    def chat_template(self) -> str | None:
        found = self._auto.chat_template
        return found if isinstance(found, str | None) else found.get("default")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._auto(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._auto.decode(list(ids), skip_special_tokens=True)
        return text

    def token_bytes(self, token_id: int) -> bytes | None:
        return self._bytes.of(token_id)

    def token_name(self, token_id: int) -> str:
        return self._bytes.name(token_id)

    def settings(self) -> dict[str, Any]:
        return settings_of(self._auto)

    def chat(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
    ) -> list[int]:
        if not options.allow_special_tokens:
            if self._special is None:
                self._refuse_special(messages, options)
            elif self._special.suspected(messages, options):
                return self._special.ids(messages, options, self._render, _ids)
        text = self._render(messages, options)
        ids: list[int] = self._auto(text, add_special_tokens=False)["input_ids"]
        return ids

    def _render(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
    ) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self._auto.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in options.tools] or None,
                add_generation_prompt=options.add_generation_prompt,
                continue_final_message=options.continue_final_message,
                tokenize=False,
                **options.template_kwargs,
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses this: {error}") from error
        return text

    def _refuse_special(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions
    ) -> None:
        """A tokenizer in Python has one way to read a text."""
        given = list(strings([messages, options.tools, options.template_kwargs]))
        for token in self._auto.all_special_tokens:
            if any(token in text for text in given):
                raise ValueError(
                    f"the text of a message spells the special token {token}, which this model's "
                    "tokenizer cannot read as text; allow_special_tokens=true sends the token"
                )


def _ids(backend: Any, text: str, add_special_tokens: bool = False) -> list[int]:
    if len(text) < _LONG:
        ids: list[int] = backend.encode(text, add_special_tokens=add_special_tokens).ids
    else:
        ids = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
    return ids


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
