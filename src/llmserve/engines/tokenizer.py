"""`Tokenizer`: text to token ids and back, as the engine's model reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec


class ChatOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a conversation is put before the model, beside its messages."""

    tools: tuple[Mapping[str, Any], ...] = ()
    """What the model may call, as OpenAI's `tools` describe it."""
    template_kwargs: Mapping[str, Any] = {}
    """Further names that the chat template reads, as `enable_thinking`."""
    add_generation_prompt: bool = True
    """Whether the assistant's turn is opened behind the messages."""
    continue_final_message: bool = False
    """Whether the last message is left open, for the model to go on with it."""
    allow_special_tokens: bool = False
    """Whether a special token's spelling in a message is that token, which may end a turn; else it
    is read as text."""


PLAIN_CHAT = ChatOptions()


class Tokenizer(Protocol):
    """Text to token ids and back, as the engine's model reads them."""

    @property
    def chat_template(self) -> str | None:
        """The source of the model's chat template, where there is one to read."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of raw text, with what special tokens the model wants in front. Those that the
        text spells are those tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token_bytes(self, token_id: int) -> bytes | None:
        """What the token adds to a text, were it not at its start: part of a character may be all
        of it. None of a special token, which has a name and adds nothing."""
        ...

    def token_name(self, token_id: int) -> str:
        """As the vocabulary writes it, as `<|im_end|>`."""
        ...

    def chat(
        self, messages: Sequence[Mapping[str, object]], options: ChatOptions = PLAIN_CHAT
    ) -> list[int]:
        """Token ids of a conversation rendered by the model's chat template, ready to answer.

        Raises ValueError where the model has no chat template or the template refuses.
        """
        ...


@runtime_checkable
class TellsSettings(Protocol):
    """A tokenizer that can say what it is."""

    def settings(self) -> dict[str, Any]:
        """What tokenizer_config.json says, with the class and the chat template."""
        ...


def settings_of(tokenizer: Any) -> dict[str, Any]:
    """Those of a tokenizer of transformers', without the paths of its files; as vLLM gives them."""
    given = {
        name: value
        for name, value in (getattr(tokenizer, "init_kwargs", None) or {}).items()
        if not name.endswith(("_file", "name_or_path"))
    }
    template = getattr(tokenizer, "chat_template", None)
    return {
        **_plain(given),
        "tokenizer_class": type(tokenizer).__name__,
        **({"chat_template": template} if template else {}),
    }


def _plain(value: Any) -> Any:
    """A special token as its text; what JSON has no form for, as Python shows it."""
    if hasattr(value, "content"):
        return value.content
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
