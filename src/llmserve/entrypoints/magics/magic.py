"""`LlmserveMagic`: the subcommands of one shell's `%llmserve`, and the server they speak of.

The server is whatever open Session this magic started, else the user's own variable `session`:
a server made in code obeys the magics too.
"""

from __future__ import annotations

import argparse
import datetime
import re
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from llmserve.core.knobs import SPECS, KnobError
from llmserve.core.types import ParamError
from llmserve.core.validation import meant, mistyped
from llmserve.engines import registry
from llmserve.engines.base import EngineError
from llmserve.engines.process.processes import end, stale
from llmserve.entrypoints.magics import cards, parsers
from llmserve.entrypoints.magics.display import Elapsed, note, show
from llmserve.entrypoints.magics.user_errors import Interrupted, UserError

if TYPE_CHECKING:
    from llmserve.entrypoints.commands.measure import Kind
    from llmserve.entrypoints.session.session import Session

_NAME, _SECOND_NAME = "session", "llmserve_session"


class LlmserveMagic:
    """One per shell. `llmserve` is the magic; each `_do_…` method is a subcommand."""

    def __init__(self, ip: Any) -> None:
        self._ip = ip
        self._parsers = parsers.build_parsers()
        self._session: Session | None = None
        self._started_with: dict[str, Any] = {}
        self._name = _NAME
        self.matcher: Any = None

    def llmserve(self, line: str, cell: str | None = None) -> Any:
        """Start, watch, tune and stop a model server in this kernel; `%llmserve help` lists all.

        As a cell magic the cell is the prompt: %%llmserve [--max-tokens N] [--temperature T] …
        """
        word, _, rest = line.strip().partition(" ")
        if cell is not None or word == "ask":
            return self._ask(rest if word == "ask" else line, cell)
        if word in ("", "-h", "--help", "-?"):
            word = "help"
        if word not in self._parsers:
            raise UserError(f"there is no subcommand {word!r}{meant(word, self._parsers)}")
        parser = self._parsers[word]
        words = parsers.split_words(rest)
        if "--help" in words or "-h" in words:
            show({"text/plain": parsers.help_text(self._parsers, word)})
            return None
        command: Callable[[argparse.Namespace], Any] = getattr(self, f"_do_{word}")
        return _reporting(command, parser.parse_intermixed_args(words))  # options anywhere

    def _do_start(self, args: argparse.Namespace) -> None:
        models, options = parsers.assignments(args.words, "%llmserve start")
        if len(models) > 1:
            raise UserError(str(mistyped("%llmserve start", "one model", models)))
        model = models[0] if models else None
        requested = {"model": model, "engine": args.engine, "port": args.port, **options}
        running = self._running()
        if running is not None:
            plain = requested == {"model": None, "engine": registry.AUTO, "port": 0}
            if not args.force and (plain or requested == self._started_with):
                show(note("It is running already:"))
                show(cards.server_card(running, self._name))
                return
            if not args.force:
                raise UserError(
                    f"{running.info.model_id} is running already, started with other options. "
                    "%llmserve set changes knobs; %llmserve start --force … starts anew"
                )
            show(note(str(running.close())))
        self._start(requested)

    def _start(self, requested: dict[str, Any]) -> None:
        from llmserve.core.clock import MonotonicClock
        from llmserve.entrypoints.session.serve import serve

        clock = MonotonicClock()
        began = clock.now()
        what = requested["model"] or registry.default_model(requested["engine"])
        try:
            with Elapsed(f"Starting {what}") as line:
                self._session = serve(**requested)
                self._started_with = requested
        except KeyboardInterrupt:
            raise Interrupted("nothing was started, and nothing is left behind.") from None
        except TypeError as error:
            raise UserError(_unknown_option(requested["engine"], error)) from error
        self._name = self._expose(self._session)
        line.update(cards.server_card(self._session, self._name, clock.now() - began))

    def _do_status(self, args: argparse.Namespace) -> None:
        session = self._running()
        if session is None:
            show(note("Nothing is running. %llmserve start"))
        else:
            show(cards.status_card(session, self._name))
        if found := stale():
            show(note(cards.stale_note(found)))
            if args.remove_stale:
                left = end([one.process for one in found], 0)
                show(note(f"Ended {len(found) - len(left)} of them."))
        elif args.remove_stale:
            show(note("No engine of a kernel that is gone was found."))

    def _do_set(self, args: argparse.Namespace) -> None:
        session = self._need()
        plain, changes = parsers.assignments(args.changes, "%llmserve set")
        if plain:
            raise UserError(str(mistyped("%llmserve set", "name=value", plain[0])))
        if changes or args.evict:
            show(note(str(session.set(**changes, evict=args.evict))))
        else:
            show(cards.knob_table(session.knobs, session.info.unsupported))

    def _do_dashboard(self, args: argparse.Namespace) -> Any:
        return self._need().dashboard()

    def _do_why(self, args: argparse.Namespace) -> Any:
        return self._need().explain(args.window)

    def _do_requests(self, args: argparse.Namespace) -> Any:
        from llmserve.entrypoints.magics.requests_view import RequestsView

        session = self._need()
        table = session.requests()
        now, clock = session.clock.now(), datetime.datetime.now() if args.clock else None
        return RequestsView.of(table if args.all else table.tail(args.last), now, clock)

    def _do_tenants(self, args: argparse.Namespace) -> Any:
        session = self._need()
        if args.source is not None:
            session.tenants_from(args.source)
        return session.tenants()

    def _do_steps(self, args: argparse.Namespace) -> Any:
        table = self._need().tape()
        return table if args.all else table.tail(args.last)

    def _do_bench(self, args: argparse.Namespace) -> Any:
        return self._measured("bench", args)

    def _do_sweep(self, args: argparse.Namespace) -> Any:
        return self._measured("sweep", args)

    def _do_compare(self, args: argparse.Namespace) -> Any:
        return self._measured("compare", args)

    def _do_tune(self, args: argparse.Namespace) -> Any:
        return self._measured("tune", args)

    def _measured(self, kind: Kind, args: Any) -> Any:
        """Of the server that runs here, or of a --url, for which none need run."""
        from llmserve.entrypoints.commands.measure import MeasureCommand

        command = MeasureCommand(kind, args)
        if command.model and not command.urls:
            raise UserError("--model is of a --url")
        found = command.measure(lambda: nullcontext(self._need()))
        command.write(found, lambda text: show({"text/plain": text}))
        return found

    def _do_url(self, args: argparse.Namespace) -> None:
        session = self._need()
        rows = {
            "here": session.url,
            "through Jupyter": session.proxy_url,
            "key": f"{self._name}.api_key",
        }
        show(cards.table(rows))

    def _do_pause(self, args: argparse.Namespace) -> None:
        self._need().pause()
        show(note("The engine is paused: %llmserve resume."))

    def _do_resume(self, args: argparse.Namespace) -> None:
        self._need().resume()
        show(note("The engine goes on."))

    def _do_sleep(self, args: argparse.Namespace) -> None:
        session = self._need()
        with Elapsed("Going to sleep") as line:
            outcome = session.sleep(args.level, drain_s=args.drain)
        line.update(note(_sentence(outcome)))

    def _do_wake(self, args: argparse.Namespace) -> None:
        session = self._need()
        with Elapsed("Waking up") as line:
            outcome = session.wake()
        line.update(note(_sentence(outcome)))

    def _do_restart(self, args: argparse.Namespace) -> None:
        session = self._need()
        with Elapsed("Restarting the engine") as line:
            outcome = session.restart(drain_s=args.drain)
        line.update(note(_sentence(outcome)))

    def _do_stop(self, args: argparse.Namespace) -> None:
        session = self._running()
        if session is None:
            show(note("Nothing is running."))
            return
        freed = session.close()
        show({"text/plain": str(freed), "text/html": freed._repr_html_()})
        self._session = None
        self._started_with = {}

    def _do_help(self, args: argparse.Namespace) -> None:
        show({"text/plain": parsers.help_text(self._parsers, args.subcommand)})

    def _ask(self, line: str, cell: str | None) -> None:
        from llmserve.entrypoints.magics.prompt_cell import ask

        if line.strip() in ("-h", "--help"):
            show({"text/plain": parsers.help_text(self._parsers, "ask")})
            return
        if cell is not None:  # else the line is the prompt, and a # in it is meant
            line = parsers.uncommented(line)
        words, typed = parsers.split_ask(line, self._parsers["ask"])
        if cell is not None and typed:
            message = mistyped("%%llmserve", "options", typed)
            raise UserError(f"{message}; the cell is the prompt")
        options = parsers.given(self._parsers["ask"].parse_args(words))
        text = (cell if cell is not None else typed).strip("\n")
        if not text.strip():
            raise UserError("the prompt is empty")
        prompt: Any = text
        if "system" in options:
            if options.get("raw"):
                raise UserError("--raw has no turns, so no --system")
            prompt = [
                {"role": "system", "content": options.pop("system")},
                {"role": "user", "content": text},
            ]
        session = self._need()
        _reporting(lambda _: ask(session, prompt, options), None)

    def _running(self) -> Session | None:
        from llmserve.entrypoints.session.session import Session

        if self._session is not None and not self._session.closed:
            return self._session
        own = self._ip.user_ns.get(_NAME)
        if isinstance(own, Session) and not own.closed:
            self._session, self._started_with, self._name = own, {}, _NAME
            return own
        return None

    def _need(self) -> Session:
        session = self._running()
        if session is None:
            raise UserError("nothing is running yet: %llmserve start")
        return session

    def _expose(self, session: Session) -> str:
        """Give the session a name in the notebook, and never take one of the user's."""
        from llmserve.entrypoints.session.session import Session

        taken = self._ip.user_ns.get(_NAME)
        name = _NAME if taken is None or isinstance(taken, Session) else _SECOND_NAME
        self._ip.user_ns[name] = session
        if name != _NAME:
            show(note(f"`{_NAME}` is a variable of yours; the server is `{name}`."))
        return name


def _reporting(command: Callable[[Any], Any], args: Any) -> Any:
    """Run it; what the user can mend becomes one line, anything else stays a traceback."""
    from llmserve.serving.stream import Refused, RequestTimeout

    try:
        return command(args)
    except (KnobError, ParamError, EngineError, Refused, RequestTimeout) as error:
        raise UserError(str(error)) from error
    except OSError as error:
        sentence = error.strerror if error.filename is None else None
        raise UserError(sentence or str(error)) from error
    except (ValueError, ImportError) as error:
        raise UserError(str(error)) from error
    except CancelledError:
        raise UserError("the server was stopped while this ran") from None


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _unknown_option(engine: str, error: TypeError) -> str:
    """The engine knows no options of the server."""
    match = re.search(r"has no option '(\w+)'", str(error))
    if match and (near := meant(match[1], [*SPECS, *parsers.START_OPTIONS], listed=())):
        return f"{match[1]!r} is no knob and no option of engine {engine}{near}"
    return str(error)
