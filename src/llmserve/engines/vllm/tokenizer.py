"""vLLM's own tokenizer behind `engines.Tokenizer`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from llmserve.engines.token_bytes import TokenBytes
from llmserve.engines.tokenizer import PLAIN_CHAT, ChatOptions, settings_of


class VllmTokenizer:
    """A copy: the one that vLLM detokenises with may be in use in another thread."""

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        """chat_template: the text of one to use instead of the model's own."""
        self._tokenizer = copy.deepcopy(tokenizer)
        self._bytes = TokenBytes(self._tokenizer)
        if chat_template is not None:
            self._tokenizer.chat_template = chat_template

    @property
    def has_chat(self) -> bool:
        return getattr(self._tokenizer, "chat_template", None) is not None

    @property
    def chat_template(self) -> str | None:
        found = getattr(self._tokenizer, "chat_template", None)
        return found if isinstance(found, str | None) else found.get("default")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_bytes(self, token_id: int) -> bytes | None:
        return self._bytes.of(token_id)

    def token_name(self, token_id: int) -> str:
        return self._bytes.name(token_id)

    def settings(self) -> dict[str, Any]:
        return settings_of(self._tokenizer)

    def chat(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
    ) -> list[int]:
        """As vLLM reads it: special tokens that a message spells are those tokens."""
        from jinja2 import TemplateError

        if not messages:
            raise ValueError("a conversation needs at least one message")
        if not self.has_chat:
            raise ValueError("the model has no chat template")
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in options.tools] or None,
                add_generation_prompt=options.add_generation_prompt,
                continue_final_message=options.continue_final_message,
                return_dict=False,
                **options.template_kwargs,
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses this: {error}") from error
        return list(ids)
