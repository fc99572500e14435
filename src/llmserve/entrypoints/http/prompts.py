"""From a body's prompt or messages to token ids, within the model's context."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llmserve.core.validation import mistyped
from llmserve.engines.base import EngineInfo
from llmserve.engines.tokenizer import Tokenizer
from llmserve.entrypoints.http.errors import ApiError, invalid
from llmserve.entrypoints.http.protocol import ChatBody, CompletionBody, Message, SamplingBody
from llmserve.serving import requests
from llmserve.serving.tokenize import tokenised

_CHARACTERS_PER_TOKEN = 128
"""No vocabulary packs text so densely; more than this for the whole context is too long unread."""

Ids = tuple[int, ...]


async def chat_ids(tokenizer: Tokenizer, info: EngineInfo, messages: Sequence[Message]) -> Ids:
    """The conversation through the model's chat template; ApiError 400 where it refuses."""
    if not messages:
        raise no_messages()
    _check_length(len(messages), "messages", info.max_model_len, info, "messages")
    turns = [
        {"role": _role(message), "content": _text(message, f"messages[{index}]")}
        for index, message in enumerate(messages)
    ]
    length = sum(len(turn["role"]) + len(turn["content"]) for turn in turns)
    _check_text(length, info, "messages")
    try:
        return tuple(await tokenised(length, tokenizer.chat, turns))
    except ValueError as error:
        raise invalid("messages", str(error)) from None


def no_messages() -> ApiError:
    return invalid("messages", "a conversation needs at least one message")


async def all_ids(
    tokenizer: Tokenizer, info: EngineInfo, prompts: Sequence[str | list[int]]
) -> list[Ids]:
    """Of each; between two of them all streams have their turn."""
    found: list[Ids] = []
    for prompt in prompts:
        if found:
            await asyncio.sleep(0)
        found.append(await prompt_ids(tokenizer, info, prompt))
    return found


async def prompt_ids(tokenizer: Tokenizer, info: EngineInfo, prompt: str | list[int]) -> Ids:
    if not isinstance(prompt, str):
        return requests.known_tokens(prompt, info, "prompt")
    _check_text(len(prompt), info, "prompt")
    return tuple(await tokenised(len(prompt), tokenizer.encode, prompt))


def prompts_of(body: CompletionBody) -> list[str | list[int]]:
    """One text, one list of ids, or a list of one of these; never a mixture."""
    prompt: Any = body.prompt
    if isinstance(prompt, str) or (prompt and all(isinstance(item, int) for item in prompt)):
        return [prompt]
    if not prompt:
        raise invalid("prompt", "the prompt is empty")
    if len({type(item) for item in prompt}) > 1:
        kind = "a string, strings, token ids, or lists of token ids"
        raise invalid("prompt", mistyped("prompt", kind, prompt))
    return list(prompt)


def reply_tokens(prompts: Sequence[Ids], body: SamplingBody, info: EngineInfo) -> int:
    """The longest reply: as asked, or what fits. ContextExceeded where what is asked does not."""
    param = "messages" if isinstance(body, ChatBody) else "prompt"
    if not all(prompts):
        raise invalid(param, "the prompt is empty")
    longest = max(map(len, prompts))
    if body.asked_tokens is not None:
        called = body.sent_names.get("max_tokens", "max_tokens")
        return requests.reply_tokens(body.asked_tokens, longest, info, param, called)
    room = requests.room_left(longest, info, param)
    return min(room, body.default_tokens or room)


def _role(message: Message) -> str:
    """Open models' templates know no developer: it is OpenAI's newer word for system."""
    return "system" if message.role == "developer" else message.role


def _text(message: Message, at: str) -> str:
    """The message's text; `at` is its path in the body."""
    if message.content is None:
        if message.role != "assistant":
            raise invalid(f"{at}.content", f"a {message.role} message needs content")
        return ""
    if isinstance(message.content, str):
        return message.content
    for index, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            path = f"{at}.content[{index}]"
            raise invalid(path, f"content of type {part.type!r} is not supported; text is")
    return "\n".join(part.text or "" for part in message.content)


def _check_text(length: int, info: EngineInfo, param: str) -> None:
    _check_length(length, "characters", info.max_model_len * _CHARACTERS_PER_TOKEN, info, param)


def _check_length(length: int, of: str, most: int, info: EngineInfo, param: str) -> None:
    if length > most:
        context = info.max_model_len
        raise _too_long(requests.over_context(context, f"{length:,} {of} cannot fit it"), param)


def _too_long(message: str, param: str) -> ApiError:
    return ApiError(400, message, param=param, code="context_length_exceeded")
