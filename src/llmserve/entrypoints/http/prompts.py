"""From a body's prompt or messages to token ids, within the model's context."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llmserve.engines.base import EngineInfo, Tokenizer
from llmserve.entrypoints.http.errors import ApiError
from llmserve.entrypoints.http.protocol import ChatBody, CompletionBody, Message, SamplingBody
from llmserve.serving.tokenize import tokenised

_CHARACTERS_PER_TOKEN = 128
"""No vocabulary packs text so densely; more than this for the whole context is too long unread."""

Ids = tuple[int, ...]


async def chat_ids(tokenizer: Tokenizer, info: EngineInfo, messages: Sequence[Message]) -> Ids:
    """The conversation through the model's chat template; ApiError 400 where it refuses."""
    if not messages:
        raise _wrong("messages", "messages must hold at least one message")
    _check_length(len(messages), "messages", info.max_model_len, info, "messages")
    turns = [{"role": _role(message), "content": _text(message)} for message in messages]
    length = sum(len(turn["role"]) + len(turn["content"]) for turn in turns)
    _check_text(length, info, "messages")
    try:
        return tuple(await tokenised(length, tokenizer.chat, turns))
    except ValueError as error:
        raise _wrong("messages", str(error)) from None


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
        return token_list(prompt, info, "prompt")
    _check_text(len(prompt), info, "prompt")
    return tuple(await tokenised(len(prompt), tokenizer.encode, prompt))


def prompts_of(body: CompletionBody) -> list[str | list[int]]:
    """One text, one list of ids, or a list of one of these; never a mixture."""
    prompt: Any = body.prompt
    if isinstance(prompt, str) or (prompt and all(isinstance(item, int) for item in prompt)):
        return [prompt]
    if not prompt:
        raise _wrong("prompt", "the prompt is empty")
    if len({type(item) for item in prompt}) > 1:
        raise _wrong("prompt", "prompt is a string, strings, token ids, or lists of token ids")
    return list(prompt)


def reply_tokens(prompts: Sequence[Ids], body: SamplingBody, info: EngineInfo) -> int:
    """The longest reply: as asked, or what fits. ApiError where what is asked does not fit."""
    param = "messages" if isinstance(body, ChatBody) else "prompt"
    if not all(prompts):
        raise _wrong(param, "the prompt is empty")
    longest, limit = max(map(len, prompts)), info.max_model_len
    room = limit - longest
    if room < 1:
        raise _too_long(
            f"the prompt has {longest} tokens and leaves no room to answer within the model's "
            f"context of {limit}",
            param,
        )
    asked = body.asked_tokens
    if asked is None:
        return min(room, body.default_tokens or room)
    if asked > room:
        raise _too_long(
            f"the prompt has {longest} tokens: {asked} more to generate do not fit the model's "
            f"context of {limit}",
            param,
        )
    return asked


def token_list(ids: Sequence[int], info: EngineInfo, param: str) -> Ids:
    """`ids`, each of them in the vocabulary: an engine indexes by them without looking."""
    limit = info.vocab_size or 2**31
    if ids and not 0 <= min(ids) <= max(ids) < limit:  # a body may hold millions of them
        wrong = next(token_id for token_id in ids if not 0 <= token_id < limit)
        raise _wrong(param, f"token id {wrong} is not within 0 and {limit - 1}")
    return tuple(ids)


def _role(message: Message) -> str:
    """Open models' templates know no developer: it is OpenAI's newer word for system."""
    return "system" if message.role == "developer" else message.role


def _text(message: Message) -> str:
    if message.tool_calls:
        raise _wrong("messages", "tool_calls are not supported by this server")
    if message.content is None:
        if message.role != "assistant":
            raise _wrong("messages", f"a {message.role} message needs content")
        return ""
    if isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise _wrong("messages", f"content of type {part.type!r} is not supported; text is")
    return "\n".join(part.text or "" for part in message.content)




def _check_text(length: int, info: EngineInfo, param: str) -> None:
    _check_length(length, "characters", info.max_model_len * _CHARACTERS_PER_TOKEN, info, param)


def _check_length(length: int, of: str, most: int, info: EngineInfo, param: str) -> None:
    if length > most:
        context = info.max_model_len
        raise _too_long(f"{length} {of} cannot fit the model's context of {context} tokens", param)


def _too_long(message: str, param: str) -> ApiError:
    return ApiError(400, message, param=param, code="context_length_exceeded")


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")
