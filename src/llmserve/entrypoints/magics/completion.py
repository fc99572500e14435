"""Tab completion of `%llmserve`: subcommands, options, knob names and values."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from llmserve.core.knobs import SPECS
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
    if sign:
        return _values(name, options)
    if len(done) > 1 and done[-1] in options and options[done[-1]].nargs != 0:
        return _values(done[-1], options)
    if last.startswith("-"):
        return list(options)
    knobs = [f"{knob}=" for knob in SPECS] if done[0] in ("start", "set") else []
    return [*knobs, *options]


def _values(name: str, options: dict[str, Any]) -> list[str]:
    if name in options:
        return [str(choice) for choice in options[name].choices or ()]
    spec = SPECS.get(name)
    if spec is None:
        return []
    if spec.choices:
        return list(spec.choices)
    return [f"{spec.default:g}"] if isinstance(spec.default, float) else [str(spec.default)]
