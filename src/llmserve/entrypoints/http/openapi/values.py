"""What is known of values: bounds and kinds that the structs of bodies do not say; a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmserve.core.bounds import BOUNDS, LONGEST_TENANT, MOST_STOPS, MOST_TOKEN_ID
from llmserve.core.validation import Bounds
from llmserve.entrypoints.http.lifecycle import DRAIN

Schema = dict[str, Any]

_TOKEN = {"type": "integer", "minimum": 0, "maximum": MOST_TOKEN_ID}
_TEXT = {"type": "string", "minLength": 1}
_FORM = {"type": ["object", "boolean", "string"]}
_FLAG = {"type": "boolean"}


def number(bounds: Bounds) -> Schema:
    """One number of the table of bounds."""
    kind = {"whole": "integer", "real": "number"}[bounds.kind]
    low = "exclusiveMinimum" if bounds.above else "minimum"
    return {"type": kind, low: bounds.low, "maximum": bounds.high}


VALUES: Mapping[str, Schema] = {
    **{name: number(bounds) for name, bounds in BOUNDS.items()},
    "logit_bias": {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": number(BOUNDS["logit_bias"]),
    },
    "top_k": {"type": "integer", "minimum": -1, "maximum": BOUNDS["top_k"].high},
    "stop": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": MOST_STOPS}]},
    "stop_token_ids": {"type": "array", "items": _TOKEN},
    "ignore_eos": _FLAG,
    "tenant": {**_TEXT, "maxLength": LONGEST_TENANT},
    "guided_json": _FORM,
    "guided_regex": _TEXT,
    "guided_choice": {"type": "array", "items": _TEXT, "minItems": 1},
    "guided_grammar": _TEXT,
    "skip_special_tokens": _FLAG,
    "include_stop_str_in_output": _FLAG,
    "model": {"type": "string"},
    "stream": _FLAG,
    "stream_options": {"type": "object"},
    "tools": {"type": "array", "items": {"type": "object"}},
    "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}]},
    "parallel_tool_calls": _FLAG,
    "allow_special_tokens": _FLAG,
    "chat_template_kwargs": {"type": "object"},
    "structured_outputs": {"type": "object"},
    "input": {"anyOf": [_TEXT, {"type": "array", "items": {"type": "object"}, "minItems": 1}]},
    "instructions": {"type": "string"},
    "text": {"type": "object"},
    "include": {"type": "array", "items": {"type": "string"}},
}
"""Of fields that a struct leaves to the table of bounds."""
FURTHER: Mapping[str, Schema] = {
    "messages": {"minItems": 1},
    "tokens": {"items": _TOKEN},
    "drain_s": number(DRAIN),
    "level": {"enum": [1, 2]},
}
"""What a type does not say of its values."""
NUMBERS = {
    "max_completion_tokens": "max_tokens", "max_output_tokens": "max_tokens",
    "top_logprobs": "logprobs",
}  # fmt: skip
OWN: Mapping[tuple[str, str], Schema] = {
    ("response_format", "type"): {"enum": ["text", "json_object", "json_schema"]},
    ("response_format.json_schema", "schema"): _FORM,
    ("response_format.json_schema", "strict"): _FLAG,
    ("structured_outputs", "json"): _FORM,
    ("structured_outputs", "json_object"): _FLAG,
    ("structured_outputs", "regex"): _TEXT,
    ("structured_outputs", "choice"): VALUES["guided_choice"],
    ("structured_outputs", "grammar"): _TEXT,
    ("tools", "type"): {"enum": ["function"]},
    ("tools.function", "name"): {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
    ("tools.function", "description"): {"type": "string"},
    ("tools.function", "parameters"): _FORM,
    ("tools.function", "strict"): _FLAG,
}
"""Of fields of objects within a body, by the object's path."""
LISTS = frozenset({"tools", "messages.tool_calls"})
"""Objects within a body that come in lists, where no struct says so."""


HELP: Mapping[str, str] = {
    "frequency_penalty": "Makes a token less likely by how often it has come.",
    "guided_choice": "The reply is one of these texts.",
    "guided_json": "The reply fits this JSON Schema.",
    "guided_regex": "The reply matches this regular expression.",
    "ignore_eos": "Whether the reply goes on past the model's own end.",
    "add_generation_prompt": "Whether the assistant's turn is opened behind the messages.",
    "add_special_tokens": "Whether the special tokens are added that the model wants in front.",
    "allow_special_tokens": "Whether a special token that a message spells is that token.",
    "chat_template_kwargs": "Further names that the chat template reads.",
    "continue_final_message": "Whether the model goes on with the last message.",
    "echo": "Whether the text begins with its prompt.",
    "guided_grammar": "The reply follows this grammar, in Lark's form.",
    "include": "What else to tell: message.output_text.logprobs.",
    "include_stop_str_in_output": "Whether the text ends with what ended it.",
    "input": "A text, or the conversation as items.",
    "instructions": "A system message before the input.",
    "logit_bias": "What is added to the logits of tokens, by their id.",
    "logprobs": "Logprobs of the reply's tokens.",
    "max_completion_tokens": "The longest reply, in tokens; before max_tokens where both are sent.",
    "max_tokens": "The longest reply, in tokens.",
    "messages": "The conversation, oldest first.",
    "min_p": "Keeps tokens of at least this share of the likeliest one's probability.",
    "min_tokens": "The shortest reply, in tokens.",
    "drain_s": "How long running requests may take to end, in seconds.",
    "level": "How much memory is given back; what each means is the engine's.",
    "model": "The model's name; none is the one that is served.",
    "n": "Replies to each prompt.",
    "parallel_tool_calls": "Whether one reply may call several tools.",
    "presence_penalty": "Makes a token less likely that has come.",
    "priority": "Lower goes first.",
    "prompt": "A text, token ids, or a list of one of these.",
    "prompt_logprobs": "Logprobs of the prompt's tokens, with so many alternatives to each.",
    "repetition_penalty": "Divides the logits of tokens that have come, prompt included.",
    "response_format": "The form of the reply: text, a JSON object, or one of a schema.",
    "return_token_strs": "Whether each token comes as text too.",
    "return_tokens_as_token_ids": "Whether tokens of logprobs are named by their ids.",
    "seed": "The same seed, the same reply.",
    "skip_special_tokens": "Whether the text leaves special tokens out.",
    "stop": "Texts at which the reply ends; they are not part of it.",
    "stop_token_ids": "Tokens at which the reply ends.",
    "stream": "Whether the reply comes as server-sent events.",
    "stream_options": "What a stream tells besides.",
    "structured_outputs": "The reply's form: one of json, json_object, regex, choice and grammar.",
    "temperature": "0 takes the likeliest token; higher draws more freely.",
    "tenant": "For whom the request counts, where the key does not say so.",
    "tokens": "Token ids.",
    "text": "The form of the reply, in its format.",
    "tool_choice": "Whether and what to call: none, auto, required, or one tool by its name.",
    "tools": "Functions that the model may call.",
    "top_k": "Draws from so many of the likeliest tokens; 0 and -1 from all.",
    "top_logprobs": "Logprobs of so many alternatives to each token.",
    "top_p": "Draws from the likeliest tokens that sum up to this probability.",
    "ttft_slo_ms": "When the first token is due, in milliseconds.",
}

_ASKED = [{"role": "user", "content": "Tell me a story."}]
EXAMPLES: Mapping[str, Schema] = {
    "/v1/chat/completions": {"messages": _ASKED, "max_tokens": 32},
    "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0},
    "/v1/responses": {"input": "Tell me a story.", "max_output_tokens": 32},
    "/tokenize": {"messages": _ASKED, "return_token_strs": True},
    "/detokenize": {"tokens": [5, 6]},
}
"""Of bodies, by path."""

SUMMARIES: Mapping[str, str] = {
    "POST /v1/chat/completions": "A reply to a conversation, whole or as it comes.",
    "POST /v1/completions": "A text that goes on from a prompt, whole or as it comes.",
    "POST /v1/responses": "OpenAI's newer shape of a chat; nothing is kept.",
    "GET /v1/models": "The model that is served.",
    "GET /v1/models/{id}": "The same, by its name.",
    "POST /tokenize": "The tokens of a text or a conversation.",
    "POST /detokenize": "The text of tokens.",
    "GET /tokenizer_info": "The tokenizer's settings and chat template.",
    "GET /health": "Whether it can answer now.",
    "GET /metrics": "Counters and histograms, for Prometheus or as JSON.",
    "GET /llmserve/requests": "The last requests.",
    "GET /llmserve/steps": "The engine's last steps.",
    "GET /llmserve/knobs": "The knobs and their values.",
    "PATCH /llmserve/knobs": "Turn knobs of the running server.",
    "POST /llmserve/sleep": "Give the engine's memory back; requests wait.",
    "POST /llmserve/wake": "Take it again, and go on.",
    "POST /llmserve/restart": "Start the engine anew; requests wait.",
    "GET /openapi.json": "This description, for programs.",
    "GET /docs": "This page.",
}
"""Of routes, in a sentence."""
