"""What may be typed after `%llmserve`: one parser per subcommand, with our own errors.

Completion and help read the same parsers, so none of the three can promise what another lacks.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from llmserve.core.knobs import SPECS
from llmserve.core.validation import literal, meant, number
from llmserve.engines import registry
from llmserve.entrypoints.commands.load_options import (
    add_address,
    add_bench,
    add_compare,
    add_load,
    add_output,
    add_sweep,
    add_tune,
)
from llmserve.entrypoints.magics.user_errors import UserError

START_OPTIONS = (
    "allow_special_tokens", "api_key", "api_keys", "cors_origins", "gc_threshold", "host",
    "log_requests", "response_cache", "strict", "switch_interval_s",
)
"""Names that `start name=value` takes besides knobs and the engine's own options."""

SUMMARIES = {
    "start": "start a server in this kernel",
    "status": "what runs, and how it fares",
    "set": "change knobs while requests flow",
    "ask": "send a prompt; the reply streams (also %%llmserve: the cell is the prompt)",
    "dashboard": "live charts and sliders",
    "why": "why it is slow: TTFT and ITL by cause, and the knob that binds",
    "requests": "one row per request, as a DataFrame",
    "tenants": "one row per tenant: terms, load and what became of its requests",
    "steps": "one row per engine step, as a DataFrame",
    "bench": "put a load on it and report the figures",
    "sweep": "measure every combination of knobs and loads, without a restart",
    "compare": "two settings in turns on the same arrivals, with a verdict",
    "tune": "the knobs that serve a load best, raced live without a restart",
    "url": "the addresses for clients",
    "pause": "freeze the engine between two steps until resume, where it can",
    "resume": "let a paused engine go on",
    "sleep": "give the engine's memory back until wake; requests wait meanwhile",
    "wake": "serve again after sleep",
    "restart": "start the engine anew; requests wait meanwhile",
    "stop": "stop it and say what was freed",
    "help": "this, or the options of one subcommand",
}

_NOTES = {
    "start": "option=value gives knobs their first values (max_num_seqs=8) and sets options of "
    "the engine (dtype=float32; !llmserve engines NAME lists them). MODEL is a hub id or a folder; "
    f"none is the bundled storyteller. Of the server: {', '.join(START_OPTIONS)}.",
    "set": "Knobs: " + ", ".join(SPECS) + ".",
    "bench": "With --concurrency N clients wait for each other's replies (closed loop); else "
    "requests come at --rate for --duration (open loop).",
    "sweep": "An axis is a knob or an option of the load: max_num_seqs=1,8,32 concurrency=4,16.",
    "compare": "Two sides, each name=value,name=value, a policy, or . for no change: "
    "compare fifo fair_share --rate 20.",
    "tune": "Limits of the SLO and knobs in any order: tune ttft_p95=300ms itl_p99=50ms "
    "max_num_seqs=8,16,32 --rate 20. Without knobs those are tried that matter for most loads.",
}


class EngineNames(Collection[str]):
    """The engines that may be asked for now: a package may bring one into a running kernel."""

    def __contains__(self, name: object) -> bool:
        return name in registry.names()

    def __iter__(self) -> Iterator[str]:
        return iter(registry.names())

    def __len__(self) -> int:
        return len(registry.names())


class Parser(argparse.ArgumentParser):
    """Raises Problem where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        if unknown:
            word = unknown[1].partition("=")[0]
            message = f"{word!r} is nothing it knows{meant(word, options_of(self))}"
        choice = re.search(r"argument (\S+): invalid choice: '([^']*)'", message)
        if choice:
            choices = [str(each) for each in options_of(self)[choice[1]].choices or ()]
            message = f"{choice[1]} is never {choice[2]!r}{meant(choice[2], choices)}"
        raise UserError(f"{self.prog}: {message}")


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Long option to its action."""
    return {
        name: action
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--")
    }


def build_parsers() -> dict[str, Parser]:
    parsers = {
        name: Parser(
            prog=f"%llmserve {name}",
            description=summary[0].upper() + summary[1:] + ".",
            epilog=_NOTES.get(name),
            add_help=False,
            allow_abbrev=False,
        )
        for name, summary in SUMMARIES.items()
    }
    _start(parsers["start"])
    _set(parsers["set"])
    _life(parsers)
    _ask(parsers["ask"])
    for table in ("requests", "steps"):
        parsers[table].add_argument(
            "--last", type=int, default=20, metavar="N", help="newest rows; 20 by default"
        )
        parsers[table].add_argument("--all", action="store_true", help="every row that is kept")
    parsers["requests"].add_argument(
        "--clock", action="store_true", help="when each came by the clock, not how long ago"
    )
    parsers["tenants"].add_argument(
        "source", nargs="?", metavar="FILE", help="first read keys and terms anew from this JSON"
    )
    _measuring(parsers)
    parsers["why"].add_argument(
        "--window", type=float, default=30.0, metavar="S",
        help="seconds that it looks back; 30 by default",
    )  # fmt: skip
    parsers["help"].add_argument("subcommand", nargs="?", choices=None)
    return parsers


def _start(parser: Parser) -> None:
    parser.add_argument("words", nargs="*", metavar="MODEL | option=value")
    parser.add_argument(
        "--engine", choices=EngineNames(), default=registry.AUTO, help="what computes"
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--force", action="store_true", help="stop what runs and start anew")


def _set(parser: Parser) -> None:
    parser.add_argument("changes", nargs="*", metavar="name=value")
    parser.add_argument(
        "--evict", action="store_true",
        help="preempt at once what runs above max_num_seqs, where the engine can",
    )  # fmt: skip


def _life(parsers: Mapping[str, Parser]) -> None:
    parsers["status"].add_argument(
        "--remove-stale", action="store_true",
        help="end engine processes whose kernel is gone",
    )  # fmt: skip
    parsers["sleep"].add_argument(
        "level", nargs="?", type=int, choices=(1, 2), default=1,
        help="vLLM on a GPU: 1 keeps the weights in host memory, 2 drops them",
    )  # fmt: skip
    for name, seconds in (("sleep", 30.0), ("restart", 5.0)):
        parsers[name].add_argument(
            "--drain", type=float, default=seconds, metavar="S",
            help=f"seconds in which running requests may end first; {seconds:g} by default",
        )  # fmt: skip


def _ask(parser: Parser) -> None:
    add = parser.add_argument
    add("--max-tokens", type=number, metavar="N", help="longest reply; 256 by default")
    add("--temperature", type=number, metavar="T", help="0 is greedy; 1 by default")
    add("--top-p", type=number, metavar="P", help="draw from the likeliest tokens of this mass")
    add("--top-k", type=number, metavar="K", help="draw from the K likeliest tokens")
    add("--seed", type=number, metavar="S", help="draw the same again")
    add("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    add("--presence-penalty", type=number, metavar="X", help="against what was said at all")
    add("--frequency-penalty", type=number, metavar="X", help="against what was said often")
    add("--repetition-penalty", type=number, metavar="X", help="above 1, against repeating")
    add("--ignore-eos", action="store_true", default=None, help="go on to --max-tokens")
    add("--system", metavar="TEXT", help="the system's turn before yours")
    add("--raw", action="store_true", default=None, help="complete the text, without chat template")
    add("--priority", type=number, metavar="P", help="lower goes first, where policy=priority")
    add("--tenant", metavar="NAME", help="tenant that requests count for")


def _measuring(parsers: Mapping[str, Parser]) -> None:
    helps = {
        "bench": "of any OpenAI endpoint (…/v1), in place of the server that runs here",
        "sweep": "of a server elsewhere; its knobs are turned where it is an llmserve",
        "compare": "of an llmserve elsewhere; twice: two servers in place of settings",
        "tune": "of an llmserve elsewhere",
    }
    for (name, url_help), add_own in zip(
        helps.items(), (add_bench, add_sweep, add_compare, add_tune), strict=True
    ):
        parser = parsers[name]
        add_own(parser)
        add_load(parser)
        add_address(parser, url_help, several=name == "compare")
        parser.add_argument("--model", help="as the URL's server names it; none: its first")
        add_output(parser)


def uncommented(line: str) -> str:
    """Without the ` # comment` at its end, which IPython passes to a magic as if it were typed."""
    return re.sub(r"""((?:^|\s)#.*)|("[^"]*"|'[^']*')""", lambda found: found[2] or "", line)


def split_words(line: str) -> list[str]:
    """Shell words without a comment, and with `name = value` closed up to one word."""
    line = uncommented(line)
    line = re.sub(r"(?<=\w)\s*=\s*(?=\S)", "=", line)
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UserError(f"{str(error).lower()} in: {line}") from None


def split_ask(line: str, parser: Parser) -> tuple[list[str], str]:
    """Options in front, and the prompt after them exactly as it was typed."""
    options, words, rest = options_of(parser), [], line.strip()
    while match := re.match(r"(--[\w-]+)(?:\s+|=|$)", rest):
        name = match[1]
        if name not in options:
            raise UserError(f"%llmserve ask: {name!r} is nothing it knows{meant(name, options)}")
        words.append(name)
        rest = rest[match.end() :]
        if options[name].nargs == 0:
            continue
        value = re.match(r"(\"[^\"]*\"|'[^']*'|\S+)\s*", rest)
        if value is None:
            raise UserError(f"%llmserve ask: {name} needs a value")
        words[-1] = f"{name}={_unquoted(value[1])}"
        rest = rest[value.end() :]
    return words, rest


def assignments(words: Sequence[str], prog: str) -> tuple[list[str], dict[str, Any]]:
    """Plain words, and what the `name=value` among them say, as Python values where they are."""
    plain, values = [], {}
    for word in words:
        name, sign, text = word.partition("=")
        if sign and re.fullmatch(r"[A-Za-z_]\w*", name):
            if name in values:
                raise UserError(f"{prog}: {name} is given twice")
            values[name] = literal(text)
        elif sign and name.startswith("-"):
            raise UserError(f"{prog}: {name!r} is nothing it knows")
        else:
            plain.append(word)
    return plain, values


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were typed."""
    return {name: value for name, value in vars(args).items() if value is not None}


def help_text(parsers: Mapping[str, Parser], subcommand: str | None = None) -> str:
    if subcommand is not None:
        if subcommand not in parsers:
            raise UserError(f"there is no subcommand {subcommand!r}{meant(subcommand, parsers)}")
        return parsers[subcommand].format_help().rstrip()
    width = max(map(len, SUMMARIES))
    lines = [f"  %llmserve {name:<{width}}  {summary}" for name, summary in SUMMARIES.items()]
    return "\n".join(
        ["llmserve: a model server in this kernel.", "", *lines, "",
         "%llmserve help SUBCOMMAND lists its options. Tab completes names and values.",
         "In code the server is `session`: session.client(), session.generate(…), session.url."]
    )


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
