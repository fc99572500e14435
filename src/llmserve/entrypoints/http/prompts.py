"""From a body's prompt or messages to token ids, within the model's context."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from llmserve.core.validation import mistyped
from llmserve.engines.base import EngineInfo
from llmserve.engines.tokenizer import PLAIN_CHAT, ChatOptions, Tokenizer
from llmserve.entrypoints.http.errors import ApiError, invalid
from llmserve.entrypoints.http.protocol import ChatBody, CompletionBody, Message, SamplingBody
from llmserve.entrypoints.http.tools.history import Turn, checked_calls, rendered
from llmserve.entrypoints.http.tools.use import ToolUse
from llmserve.serving import requests
from llmserve.serving.tokenize import tokenised

_CHARACTERS_PER_TOKEN = 128
"""No vocabulary packs text so densely; more than this for the whole context is too long unread."""

_TEMPLATE_NAMES = frozenset({
    "add_generation_prompt", "chat_template", "continue_final_message", "documents", "messages",
    "return_dict", "tokenize", "tools",
})  # fmt: skip
"""What a template is given beside `chat_template_kwargs`."""

Ids = tuple[int, ...]


class Rendered(Protocol):
    """The fields that say how a conversation is put before the model."""

    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: dict[str, Any] | None
    allow_special_tokens: bool | None


def chat_options(body: Rendered, allow_special_tokens: bool) -> ChatOptions:
    """As asked; where nothing is, special tokens in messages are as the server's own option has it.
    ApiError 400 where two fields exclude each other."""
    opened = body.add_generation_prompt
    if opened and body.continue_final_message:
        said = "continue_final_message and add_generation_prompt exclude each other"
        raise invalid("continue_final_message", said)
    further = body.chat_template_kwargs or {}
    for name in _TEMPLATE_NAMES & further.keys():
        said = f"chat_template_kwargs cannot hold {name}: it is a field of its own, or not served"
        raise invalid("chat_template_kwargs", said)
    allowed = body.allow_special_tokens
    return ChatOptions(
        template_kwargs=further,
        add_generation_prompt=not body.continue_final_message if opened is None else opened,
        continue_final_message=bool(body.continue_final_message),
        allow_special_tokens=allow_special_tokens if allowed is None else allowed,
    )


async def chat_ids(
    tokenizer: Tokenizer,
    info: EngineInfo,
    messages: Sequence[Message],
    use: ToolUse | None = None,
    options: ChatOptions = PLAIN_CHAT,
) -> Ids:
    """The conversation through the model's chat template; ApiError 400 where it refuses."""
    if not messages:
        raise no_messages()
    _check_length(len(messages), "messages", info.max_model_len, info, "messages")
    turns = [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]
    turns = rendered(turns, use, tokenizer.chat_template)
    options = msgspec.structs.replace(options, tools=() if use is None else use.shown)
    length = sum(len(turn["role"]) + len(turn["content"] or "") for turn in turns)
    beside = [*options.tools, options.template_kwargs]
    _check_text(length + sum(len(repr(one)) for one in beside), info, "messages")
    try:
        return tuple(await tokenised(length, partial(tokenizer.chat, options=options), turns))
    except ValueError as error:
        raise invalid("messages", str(error)) from None


def no_messages() -> ApiError:
    return invalid("messages", "a conversation needs at least one message")


async def all_ids(
    tokenizer: Tokenizer,
    info: EngineInfo,
    prompts: Sequence[str | list[int]],
    add_special_tokens: bool = True,
) -> list[Ids]:
    """Of each; between two of them all streams have their turn."""
    found: list[Ids] = []
    for prompt in prompts:
        if found:
            await asyncio.sleep(0)
        found.append(await prompt_ids(tokenizer, info, prompt, add_special_tokens))
    return found


async def prompt_ids(
    tokenizer: Tokenizer,
    info: EngineInfo,
    prompt: str | list[int],
    add_special_tokens: bool = True,
) -> Ids:
    if not isinstance(prompt, str):
        return requests.known_tokens(prompt, info, "prompt")
    _check_text(len(prompt), info, "prompt")
    encode = partial(tokenizer.encode, add_special_tokens=add_special_tokens)
    return tuple(await tokenised(len(prompt), encode, prompt))


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
        none = body.scores is not None
        return requests.reply_tokens(
            body.asked_tokens, longest, info, param, called=called, none=none
        )
    room = requests.room_left(longest, info, param)
    return min(room, body.default_tokens or room)


def _role(message: Message) -> str:
    """Open models' templates know no developer: it is OpenAI's newer word for system."""
    return "system" if message.role == "developer" else message.role


def _turn(message: Message, at: str) -> Turn:
    """The message as chat templates read it; ApiError 400 where it is none. `at` is its path."""
    turn: Turn = {"role": _role(message), "content": _text(message, at)}
    if message.tool_calls:
        if message.role != "assistant":
            raise invalid(f"{at}.tool_calls", f"a {message.role} message has no tool_calls")
        turn["tool_calls"] = checked_calls(message.tool_calls)
    if message.role in ("tool", "function"):
        turn["tool_call_id"] = message.tool_call_id or ""
        if message.name is not None:
            turn["name"] = message.name
    return turn


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
