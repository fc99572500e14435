"""The shortest way out of a grammar, and schemas closed to names that they do not list."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLTokenizer

from llmserve.core.types import Structured
from llmserve.engines.guided.closed_schemas import closed, readable
from llmserve.engines.guided.closing import Exits
from llmserve.engines.guided.grammars import check, matcher, shortest, takes

BYTES = LLTokenizer("byte")
EXITS = Exits(BYTES)
PERSON = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}


def schema(given: Any, strict: bool = True) -> Structured:
    return Structured("json", json.dumps(given), strict)


def text_of(form: Structured) -> str:
    found = shortest(form)
    assert found is not None
    return bytes(found).decode()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, '""'),
        (True, '""'),
        (PERSON, "{}"),
        ({**PERSON, "required": ["a", "b"]}, '{"a": "", "b": 0}'),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, "[true, false]"),
        ({"anyOf": [PERSON, {"type": "null"}]}, "null"),
        ({"enum": ["north", "south"]}, '"north"'),
        ({"const": {"é": [1, "😀"]}}, '{"é": [1, "😀"]}'),
        ({"type": "string", "format": "path"}, '""'),
        ({"type": "object", "properties": {"next": {"$ref": "#"}, "x": {"type": "null"}},
          "required": ["x"]}, '{"x": null}'),
    ],
)  # fmt: skip
def test_the_way_out_is_short(given: Any, text: str) -> None:
    assert text_of(schema(given)) == text


@pytest.mark.parametrize(
    ("regex", "text"),
    [
        ("a+b", "aab"),
        ("0+1", "001"),
        ("(ab)*c", "abc"),
        ("[a-z]{3}-x", "xxx-x"),
        (r"[a-z]*\.", "."),
    ],
)
def test_the_way_out_of_a_loop_is_found(regex: str, text: str) -> None:
    assert text_of(Structured("regex", regex)) == text


LEAVES = st.sampled_from([
    {"type": "string"}, {"type": "string", "minLength": 3, "maxLength": 9}, {"type": "integer"},
    {"type": "number", "minimum": 10}, {"type": "boolean"}, {"type": "null"},
    {"enum": ["a", 1, None]}, {"const": "x"}, {"type": "string", "pattern": "^[a-c]+-[0-9]{2}$"},
    {"type": "string", "format": "date"}, {"type": "object"},
])  # fmt: skip


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.lists(st.sampled_from(list("abcdef")), max_size=4, unique=True)

    def of(found: tuple[list[str], list[Any], int]) -> Any:
        named, parts, needed = found
        properties = dict(zip(named, parts, strict=False))
        return {"type": "object", "properties": properties, "required": [*properties][:needed]}

    return st.tuples(names, st.lists(inner, min_size=4, max_size=4), st.integers(0, 4)).map(of)


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: objects(inner)
    | st.builds(
        lambda one, n: {"type": "array", "items": one, "minItems": n}, inner, st.integers(0, 2)
    )
    | st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some}),
    max_leaves=8,
)  # fmt: skip


@given(given=SCHEMAS)
def test_the_way_out_from_anywhere_fits_the_schema(given: Any) -> None:
    """Also of one that has gone another way than the shortest."""
    form = schema(given)
    jsonschema.validate(json.loads(text_of(form)), given)
    found = matcher(form, BYTES)
    said: list[int] = []
    for step in range(40):  # some walk through the grammar
        bits = found.compute_bitmask()
        allowed = [one for one in range(0x20, 0x7F) if bits[one >> 3] >> (one & 7) & 1]
        if not allowed:
            break
        said.append(allowed[step * 7 % len(allowed)])
        assert found.consume_token(said[-1])
    way = EXITS.find(found)
    if way is not None:
        jsonschema.validate(json.loads(bytes(said + way)), given)


@pytest.mark.parametrize(
    "form",
    [
        schema(False),
        schema({"$ref": "#"}),
        schema({"allOf": [{"$ref": "#"}]}),
        schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
        schema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
        schema({"enum": []}),
        schema({"anyOf": []}),
        schema({"type": "integer", "minimum": 5, "maximum": 3}),
        schema({"type": "string", "pattern": "^a$", "minLength": 3}),
        schema({"not": {}}),
        schema({"type": "array", "minItems": 3, "maxItems": 2}),
        schema({"$ref": "#/nowhere"}),
        schema({"$ref": "https://example.org/other.json"}),
        schema({"type": "string", "pattern": "(("}),
        Structured("regex", r"a[^\x00-\U0010ffff]"),
        Structured("grammar", "start: nowhere"),
        Structured("grammar", "not a grammar"),
        Structured("grammar", 'start: "a" start'),
    ],
    ids=lambda form: form.text[:50],
)  # fmt: skip
def test_what_no_text_fits_is_refused_before_any_model_reads_it(form: Structured) -> None:
    with pytest.raises(ValueError, match=r"\S \S"):
        check(form)


def test_a_schema_nested_too_deeply_is_refused() -> None:
    deep: Any = {"type": "integer"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    with pytest.raises(ValueError, match=r"deep|recursion|nested"):
        check(schema(deep))


def test_words_are_taken_where_a_grammar_begins_with_any_text() -> None:
    rules = ["start: TEXT | marked", 'marked[lazy]: TEXT "<x>"', r"TEXT: /(.|\n)*/"]
    free = Structured("grammar", "\n".join(rules))
    assert takes(free, "some words")
    assert not takes(Structured("grammar", 'start: "a"*'), "some words")


@pytest.mark.parametrize(
    "left",
    [
        {"type": "object"},
        {**PERSON, "additionalProperties": True},
        {**PERSON, "additionalProperties": {"type": "null"}},
        {**PERSON, "required": ["a", "c"]},
        {**PERSON, "minProperties": 3},
        {**PERSON, "patternProperties": {"^x": {"type": "null"}}},
        {**PERSON, "unevaluatedProperties": False},
        {"allOf": [PERSON, {"type": "object", "properties": {"c": {}}, "required": ["c"]}]},
        {**PERSON, "anyOf": [{"properties": {"c": {"type": "null"}}, "required": ["c"]}]},
        {"allOf": [{"$ref": "#/$defs/p"}, {"required": ["c"]}], "$defs": {"p": PERSON}},
        {"const": {"properties": {}}},
        {"default": {"properties": {}}, "type": "integer"},
        {"not": PERSON},
        True,
    ],
    ids=str,
)
def test_what_a_schema_says_itself_stands(left: Any) -> None:
    assert closed(left) == left


@pytest.mark.parametrize(
    ("given", "path"),
    [
        (PERSON, []),
        ({"properties": {}, "type": "object"}, []),
        ({"anyOf": [PERSON, {"type": "null"}]}, ["anyOf", 0]),
        ({"type": "array", "items": PERSON}, ["items"]),
        ({"type": "array", "prefixItems": [PERSON]}, ["prefixItems", 0]),
        ({"type": "object", "additionalProperties": PERSON}, ["additionalProperties"]),
        ({"$ref": "#/$defs/p", "$defs": {"p": PERSON}}, ["$defs", "p"]),
        ({"allOf": [PERSON]}, ["allOf", 0]),
        ({"allOf": [{"$ref": "#/$defs/p"}], "$defs": {"p": PERSON}}, ["$defs", "p"]),
        ({"type": "object", "properties": {"x": PERSON}}, ["properties", "x"]),
        ({"oneOf": [PERSON], "description": "one"}, ["oneOf", 0]),
    ],
    ids=str,
)
def test_an_object_that_lists_properties_is_closed_wherever_it_stands(
    given: Any, path: list[Any]
) -> None:
    found = closed(given)
    for step in path:
        found = found[step]
    assert found["additionalProperties"] is False


def test_a_name_shared_with_a_composition_stays_open() -> None:
    parts = {"p": PERSON, "q": {"type": "object", "properties": {"inner": {"$ref": "#/$defs/p"}}}}
    both = {"allOf": [{"$ref": "#/$defs/p"}, {"properties": {"c": {"type": "null"}}}]}
    found = closed({"type": "object", "properties": {"both": both}, "$defs": parts})
    assert "additionalProperties" not in found["$defs"]["p"]
    assert found["$defs"]["q"]["additionalProperties"] is False


@given(given=SCHEMAS)
def test_closing_never_contradicts_a_schema(given: Any) -> None:
    jsonschema.validate(json.loads(text_of(schema(given, strict=False))), given)
    jsonschema.validate(json.loads(text_of(schema(given))), closed(given))


def test_open_and_closed_differ_in_what_may_follow() -> None:
    for strict, more in ((True, False), (False, True)):
        found = matcher(schema({**PERSON, "required": ["a", "b"]}, strict), BYTES)
        assert found.consume_tokens([*b'{"a": "", "b": 0'])
        assert found.validate_tokens([*b', "c": 1}']) == (9 if more else 0)


def test_formats_that_mean_nothing_here_are_remarks() -> None:
    kept = {"type": "string", "format": "date"}
    given = {"properties": {"format": {"type": "string", "format": "path"}, "d": kept}}
    assert readable(given) == {"properties": {"format": {"type": "string"}, "d": kept}}
    assert readable({"enum": [{"format": "x"}]}) == {"enum": [{"format": "x"}]}
