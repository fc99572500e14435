"""Request bodies as JSON Schemas, from the structs that read them, the tables of fields and bounds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from llmserve.core.bounds import BOUNDS, LONGEST_TENANT, MOST_STOPS, MOST_TOKEN_ID
from llmserve.core.knobs import SPECS, Spec
from llmserve.core.validation import Bounds
from llmserve.entrypoints.http.fields import Fields, structs_in
from llmserve.entrypoints.http.known_fields import Neutral
from llmserve.entrypoints.http.lifecycle import DRAIN

Schema = dict[str, Any]

_TOKEN = {"type": "integer", "minimum": 0, "maximum": MOST_TOKEN_ID}
_TEXT = {"type": "string", "minLength": 1}
_FORM = {"type": ["object", "boolean", "string"]}


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
    "ignore_eos": {"type": "boolean"},
    "tenant": {**_TEXT, "maxLength": LONGEST_TENANT},
    "guided_json": _FORM,
    "guided_regex": _TEXT,
    "guided_choice": {"type": "array", "items": _TEXT, "minItems": 1},
}
"""Of fields that a struct leaves to the table of bounds."""
_FURTHER: Mapping[str, Schema] = {
    "messages": {"minItems": 1},
    "tokens": {"items": _TOKEN},
    "drain_s": number(DRAIN),
    "level": {"enum": [1, 2]},
}
"""What a type does not say of its values."""
_NUMBERS = {
    "max_completion_tokens": "max_tokens", "max_output_tokens": "max_tokens",
    "top_logprobs": "logprobs",
}  # fmt: skip
_OWN: Mapping[tuple[str, str], Schema] = {
    ("response_format", "type"): {"enum": ["text", "json_object", "json_schema"]},
    ("response_format.json_schema", "schema"): _FORM,
    ("response_format.json_schema", "strict"): {"type": "boolean"},
    ("structured_outputs", "json"): _FORM,
    ("structured_outputs", "json_object"): {"type": "boolean"},
    ("structured_outputs", "regex"): _TEXT,
    ("structured_outputs", "choice"): VALUES["guided_choice"],
}

HELP: Mapping[str, str] = {
    "frequency_penalty": "Makes a token less likely by how often it has come.",
    "guided_choice": "The reply is one of these texts.",
    "guided_json": "The reply fits this JSON Schema.",
    "guided_regex": "The reply matches this regular expression.",
    "ignore_eos": "Whether the reply goes on past the model's own end.",
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
    "presence_penalty": "Makes a token less likely that has come.",
    "priority": "Lower goes first.",
    "prompt": "A text, token ids, or a list of one of these.",
    "repetition_penalty": "Divides the logits of tokens that have come, prompt included.",
    "response_format": "The form of the reply: text, a JSON object, or one of a schema.",
    "return_token_strs": "Whether each token comes as text too.",
    "seed": "The same seed, the same reply.",
    "stop": "Texts at which the reply ends; they are not part of it.",
    "stop_token_ids": "Tokens at which the reply ends.",
    "stream": "Whether the reply comes as server-sent events.",
    "stream_options": "What a stream tells besides.",
    "structured_outputs": "The form of the reply: one of json, json_object, regex and choice.",
    "temperature": "0 takes the likeliest token; higher draws more freely.",
    "tenant": "For whom the request counts, where the key does not say so.",
    "tokens": "Token ids.",
    "top_k": "Draws from so many of the likeliest tokens; 0 and -1 from all.",
    "top_logprobs": "Logprobs of so many alternatives to each token.",
    "top_p": "Draws from the likeliest tokens that sum up to this probability.",
    "ttft_slo_ms": "When the first token is due, in milliseconds.",
}


def body_schema(kind: type[msgspec.Struct] | None, fields: Fields, *, strict: bool) -> Schema:
    """The schema of a body: `fields` judges its names, and `kind` reads it where it is ours."""
    return _Bodies(strict).object(kind, fields, "")


class _Bodies:
    def __init__(self, strict: bool) -> None:
        self._strict = strict

    def object(self, kind: type[msgspec.Struct] | None, fields: Fields, at: str) -> Schema:
        read = {} if kind is None else {f.encode_name: f for f in msgspec.structs.fields(kind)}
        known: Schema = {}
        for name in sorted(fields.read):
            given = read.get(name)
            known[name] = self._value(name, given.type if given else Any, fields, at)
            if given is None or given.default is None:
                known[name] = optional(known[name])
            if not at and name in HELP:
                known[name] = {**known[name], "description": HELP[name]}
        for name, why in fields.ignored.items():
            known.setdefault(name, {"description": f"Changes nothing: {why}."})
        for name, neutral in fields.refused.items():
            known.setdefault(name, _only(neutral))
        schema: Schema = {"type": "object", "properties": known}
        if required := [f.encode_name for f in read.values() if f.required]:
            schema["required"] = required
        if self._strict:
            schema["additionalProperties"] = False
        return schema

    def _value(self, name: str, kind: Any, fields: Fields, at: str) -> Schema:
        inner, path = fields.inside.get(name), f"{at}.{name}" if at else name
        if kind is not Any:
            return self._typed(kind, inner, path) | _FURTHER.get(path, {})
        if inner is not None:
            return self.object(None, inner, path)
        number_of = _NUMBERS.get(name, name)
        return dict(VALUES.get(number_of, {}) if not at else _OWN.get((at, name), {}))

    def _typed(self, kind: Any, inner: Fields | None, path: str) -> Schema:
        """msgspec's schema of a type, with our own of the structs in it."""
        (schema,), parts = msgspec.json.schema_components([kind], ref_template="{name}")
        structs = {one.__name__: one for one in structs_in(kind)} if inner else {}

        def filled(value: Any) -> Any:
            if isinstance(value, dict):
                if (name := value.get("$ref")) is not None:
                    if inner is not None and name in structs:
                        return self.object(structs[name], inner, path)
                    return filled(parts[name])
                return {key: filled(each) for key, each in value.items()}
            return [filled(each) for each in value] if isinstance(value, list) else value

        found: Schema = filled(schema)
        return found


def optional(schema: Schema) -> Schema:
    """The same or null, which is as if the field were not there."""
    kind = schema.get("type")
    if not schema or kind == "null" or {"type": "null"} in schema.get("anyOf", ()):
        return schema
    if "enum" in schema:
        return {**schema, "enum": list(dict.fromkeys([*schema["enum"], None]))}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {**schema, "type": [*([kind] if isinstance(kind, str) else kind or []), "null"]}


def _only(neutral: Neutral) -> Schema:
    """Of a refused field: the values that ask for nothing."""
    return {"enum": [*neutral, None], "description": "Not supported: any other value is 400."}


def knobs_schema() -> Schema:
    """The body of PATCH /llmserve/knobs: values of knobs by name."""
    known: Schema = {
        name: {**_knob(spec), "description": _help(spec)} for name, spec in SPECS.items()
    }
    known["evict"] = {
        "type": "boolean",
        "description": "Whether what runs above a lowered max_num_seqs makes room at once.",
    }
    return {"type": "object", "properties": known, "additionalProperties": False}


def _knob(spec: Spec) -> Schema:
    if spec.choices:
        schema: Schema = {"enum": [*spec.choices]}
    elif spec.type == "text":
        schema = {"type": ["string", "object", "null"]}
    else:
        schema = {"type": {"int": "integer", "float": "number"}[spec.type]}
        ends = {"minimum": spec.low, "maximum": spec.high}
        schema |= {name: end for name, end in ends.items() if end is not None}
    return optional(schema) if spec.nullable else schema


def _help(spec: Spec) -> str:
    return re.sub(r"\s+", " ", spec.help)
