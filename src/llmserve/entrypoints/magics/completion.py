"""Tab completion of `%llmserve`: subcommands, options, knobs, the engine's options, values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmserve.core.knobs import SPECS
from llmserve.engines import registry
from llmserve.engines.base import EngineError
from llmserve.engines.entry import EngineOption
from llmserve.entrypoints.magics import parsers as grammar

_LINE = re.compile(r"^\s*(?:[\w\s,]+=\s*)?(?P<mark>%%?)llmserve\s(?P<rest>.*)$")


def completer() -> Callable[[Any], Any]:
    """A matcher for `ip.Completer.custom_matchers`. It speaks up on our lines only."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    parsers = grammar.build_parsers()

    def llmserve_matcher(context: Any) -> dict[str, Any]:
        found = candidates(context.text_until_cursor, parsers)
        token = context.token
        if found is None:
            return {"completions": []}
        return {
            "completions": [
                SimpleCompletion(text=text, type="llmserve")
                for text in found
                if text.startswith(token)
            ],
            "suppress": True,
            "matched_fragment": token,
            "ordered": True,
        }

    matcher: Callable[[Any], Any] = context_matcher(identifier="llmserve")(llmserve_matcher)
    return matcher


def candidates(line: str, parsers: dict[str, grammar.Parser]) -> list[str] | None:
    """What may stand at the end of `line`, its last word begun or not; None if not our line."""
    match = _LINE.match(line)
    if match is None:
        return None
    words = match["rest"].split(" ")
    last = words.pop()
    done = [word for word in words if word]
    if match["mark"] == "%%" and done[:1] != ["ask"]:
        done.insert(0, "ask")
    if not done:
        return list(parsers)
    parser = parsers.get(done[0])
    if parser is None:
        return []
    if done[0] == "help":
        return list(parsers)
    return _after(done, last, parser)


def _after(done: list[str], last: str, parser: grammar.Parser) -> list[str]:
    options = grammar.options_of(parser)
    name, sign, _ = last.partition("=")
    if not sign and len(done) > 1 and done[-1] in options and options[done[-1]].nargs != 0:
        name, sign = done[-1], "="
    if sign and name in options:
        return [str(choice) for choice in options[name].choices or ()]
    if last.startswith("-"):
        return list(options)
    starts = done[0] == "start"
    if sign:
        return _values(name, done[1:] if starts else None)
    names = [*SPECS] if starts or done[0] == "set" else []
    if starts:
        names += [*grammar.START_OPTIONS, *_engine_options(done[1:])]
    return [*(f"{name}=" for name in names), *options]


def _values(name: str, start: Sequence[str] | None) -> list[str]:
    """Of a knob, or of an option of the engine that `start`'s words choose."""
    if name in SPECS:
        given: Any = SPECS[name]
    elif start is None or (given := _engine_options(start).get(name)) is None:
        return []
    if given.choices:
        return list(given.choices)
    default = given.default
    if default is None and name not in SPECS:
        return []
    return [f"{default:g}"] if isinstance(default, float) else [str(default)]


def _engine_options(words: Sequence[str]) -> Mapping[str, EngineOption]:
    """Of the engine that is chosen in these words; none of one that is not there."""
    text = " ".join(words)
    chosen = re.findall(r"(?:^| )--engine(?: |=)(\S+)", text)
    try:
        if not chosen or chosen[-1] == registry.AUTO:
            entry = registry.auto_fallback()
        else:
            entry = registry.find(chosen[-1])
        return entry.known_options()
    except (ValueError, EngineError):
        return {}
