"""Request bodies as JSON Schemas, from the structs that read them and the tables of fields."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from llmserve.core.knobs import SPECS, Spec
from llmserve.entrypoints.http.fields import Fields, structs_in
from llmserve.entrypoints.http.known_fields import Neutral
from llmserve.entrypoints.http.openapi.values import (
    FURTHER,
    HELP,
    LISTS,
    NUMBERS,
    OWN,
    VALUES,
    Schema,
)


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
            return self._typed(kind, inner, path) | FURTHER.get(path, {})
        if inner is not None:
            held = self.object(None, inner, path)
            return {"type": "array", "items": held} if path in LISTS else held
        number_of = NUMBERS.get(name, name)
        return dict(VALUES.get(number_of, {}) if not at else OWN.get((at, name), {}))

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
