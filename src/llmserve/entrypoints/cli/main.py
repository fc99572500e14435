"""`llmserve serve | status | knobs | engines | bench | sweep | compare | tune`: in a terminal."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from llmserve import __version__
from llmserve.core.knobs import SPECS, Spec
from llmserve.core.validation import literal, mistyped
from llmserve.engines import registry
from llmserve.engines.base import EngineError
from llmserve.entrypoints.cli import engines_page
from llmserve.entrypoints.cli.bench import add_commands
from llmserve.entrypoints.cli.knobs_page import allowed, knobs_page

_KEY = "LLMSERVE_API_KEY"


def main(argv: Sequence[str] | None = None) -> int:
    args = _read([*sys.argv[1:]] if argv is None else [*argv])
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except (EngineError, OSError, ValueError, TypeError, ImportError) as error:
        sys.stderr.write(f"llmserve: {error}\n")
        return 1


def _read(words: list[str]) -> argparse.Namespace:
    """As argparse does, but a command's words may stand anywhere between its options."""
    parser, commands = _parser()
    if words and words[0] in commands:
        return commands[words[0]].parse_intermixed_args(words[1:])
    return parser.parse_args(words)


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The whole, and its commands."""
    parser = argparse.ArgumentParser(prog="llmserve", description=__doc__)
    parser.add_argument("--version", action="version", version=f"llmserve {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve until Ctrl-C", allow_abbrev=False)
    serve.set_defaults(run=_serve)
    serve.add_argument("model", nargs="?", help="a hub id or a folder; none: the bundled model")
    serve.add_argument("--engine", default=registry.AUTO, help=", ".join(registry.names()))
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    serve.add_argument("--api-key", help=f"else ${_KEY}, else a random one, which is printed")
    serve.add_argument(
        "--cors-origins", metavar="ORIGIN[,ORIGIN]",
        help="pages of these origins may call it from a browser, with the key; * for all",
    )
    serve.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE",
        help="an option of the engine (dtype=float32); may be repeated",
    )
    knobs = serve.add_argument_group("knobs, their first values")
    for name, spec in SPECS.items():
        flag = f"--{name.replace('_', '-')}"
        knobs.add_argument(flag, dest=f"knob_{name}", metavar="VALUE", help=_help(spec))
    status = commands.add_parser("status", help="ask a running server how it is")
    status.set_defaults(run=_status)
    status.add_argument("url", nargs="?", default="http://127.0.0.1:8000/v1")
    status.add_argument("--api-key", help=f"else ${_KEY}")
    add_commands(commands)
    page = commands.add_parser("knobs", help="print the reference of all knobs, as Markdown")
    page.set_defaults(run=lambda _: sys.stdout.write(knobs_page()) and 0)
    engines_page.add_command(commands)
    return parser, commands.choices


def _help(spec: Spec) -> str:
    return f"{spec.help} ({allowed(spec)}; default {spec.default})".replace("%", "%%")


def _serve(args: argparse.Namespace) -> int:
    from llmserve.entrypoints.session.serve import serve

    knobs = {name: value for name in SPECS if (value := getattr(args, f"knob_{name}")) is not None}
    options: dict[str, Any] = dict(_option(text) for text in args.option)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    own_key = args.api_key or os.environ.get(_KEY)
    try:
        session = serve(
            args.model, args.engine, host=args.host, port=args.port, api_key=own_key, knobs=knobs,
            cors_origins=args.cors_origins, **options,
        )
        with session:
            try:
                sys.stdout.write(
                    f"{session.info.model_id} on {session.info.engine} ({session.info.device})\n"
                    f"url  {session.url}\n"
                    f"key  {'yours' if own_key else session.api_key}\nCtrl-C stops it.\n"
                )
                sys.stdout.flush()
                threading.Event().wait()
            except KeyboardInterrupt:
                sys.stdout.write("\n")
            sys.stdout.write(f"{session.close()}\n")
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _option(text: str) -> tuple[str, object]:
    name, sign, value = text.partition("=")
    if not sign:
        raise mistyped("--option", "NAME=VALUE", text)
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, literal(value)


def _status(args: argparse.Namespace) -> int:
    root = args.url.rstrip("/").removesuffix("/v1")
    key = args.api_key or os.environ.get(_KEY, "")
    for path in ("/health", "/llmserve/knobs"):
        request = Request(root + path, headers={"Authorization": f"Bearer {key}"})
        try:
            with urlopen(request, timeout=10) as answer:
                sys.stdout.write(f"{path}: {answer.read().decode().strip()}\n")
        except HTTPError as error:
            hint = f" (set {_KEY})" if error.code == 401 else ""
            sys.stderr.write(f"{path}: {error.code} {error.reason}{hint}\n")
            return 1
        except URLError as error:
            sys.stderr.write(f"llmserve: nothing answers at {root}: {error.reason}\n")
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
