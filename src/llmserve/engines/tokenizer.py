"""`Tokenizer`: text to token ids and back, as the engine's model reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec


class ChatOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a conversation is put before the model, beside its messages."""

    tools: tuple[Mapping[str, Any], ...] = ()
    """What the model may call, as OpenAI's `tools` describe it."""
    template_kwargs: Mapping[str, Any] = {}
    """Further names that the chat template reads, as `enable_thinking`."""
    add_generation_prompt: bool = True
    """Whether the assistant's turn is opened behind the messages."""


PLAIN_CHAT = ChatOptions()


class Tokenizer(Protocol):
    """Text to token ids and back, as the engine's model reads them."""

    @property
    def chat_template(self) -> str | None:
        """The source of the model's chat template, where there is one to read."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of raw text, with what special tokens the model wants in front."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def chat(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
    ) -> list[int]:
        """Token ids of a conversation rendered by the model's chat template, ready to answer.

        Raises ValueError where the model has no chat template or the template refuses.
        """
        ...
