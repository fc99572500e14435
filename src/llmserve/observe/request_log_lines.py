"""One structured log line per request, when it has ended; no word of its prompt unless asked.

The lines go to the standard logger `llmserve.requests`, whose handlers are the user's, or as JSON
to a file that a thread of its own writes: a slow disk delays nobody.
"""

from __future__ import annotations

import logging
import os
import queue
from collections.abc import Callable, Mapping
from logging.handlers import QueueHandler, QueueListener

import msgspec

from llmserve.core.events import (
    CacheLooked,
    Dispatched,
    Event,
    Finished,
    FirstToken,
    Rejection,
    Submitted,
    TokensEmitted,
)
from llmserve.observe.request_timeline import RequestTimeline, RequestTimelines

LOGGER = "llmserve.requests"


class LogOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    to: str | None = None
    """A file, appended to; None is the logger `llmserve.requests`."""
    prompts: bool = False
    """Write the prompt's text too."""

    @classmethod
    def read(
        cls, given: bool | str | os.PathLike[str] | Mapping[str, object] | None
    ) -> LogOptions | None:
        """True takes the defaults, text is a file, a mapping names both; None for no log."""
        if given is None or given is False:
            return None
        if isinstance(given, Mapping):
            try:
                return msgspec.convert(dict(given), cls)
            except msgspec.ValidationError as error:
                raise ValueError(f"log_requests: {error}") from None
        return cls() if given is True else cls(os.fspath(given))


class LifecycleLog:
    """Attach to an EventBus. `prompt_of` is asked when a request comes, if prompts are wanted."""

    def __init__(
        self, options: LogOptions, prompt_of: Callable[[str], str | None] | None = None
    ) -> None:
        self._timelines = RequestTimelines()
        self._prompts: dict[str, str | None] = {}
        self._prompt_of = prompt_of if options.prompts else None
        self._listener: QueueListener | None = None
        self._logger = logging.getLogger(LOGGER)
        if options.to is not None:
            self._logger = logging.Logger(LOGGER, logging.INFO)  # this session's own
            self._logger.addHandler(self._file(options.to))

    def close(self) -> None:
        """Write out what is queued, and close the file. Safe twice."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.stop()
            for handler in listener.handlers:
                handler.close()

    def __call__(self, event: Event) -> None:
        match event:
            case TokensEmitted():
                for _ in self._timelines.emit(event):
                    pass
            case Submitted():
                self._timelines.submit(event)
                if self._prompt_of is not None:
                    self._prompts[event.request_id] = self._prompt_of(event.request_id)
            case Dispatched():
                self._timelines.dispatch(event)
            case FirstToken():
                self._timelines.first_token(event)
            case Finished():
                self._write(
                    self._timelines.end(event.request_id),
                    event.t,
                    {
                        "request_id": event.request_id,
                        "outcome": event.reason,
                        "prompt_tokens": event.prompt_tokens,
                        "completion_tokens": event.completion_tokens,
                        "error": event.error,
                    },
                )
            case Rejection():
                self._write(
                    self._timelines.end(event.request_id),
                    event.t,
                    {
                        "request_id": event.request_id,
                        "tenant": event.tenant,
                        "priority": event.priority,
                        "outcome": "refused",
                        "reason": event.reason,
                        "retry_after_s": event.retry_after_s,
                    },
                )
            case CacheLooked(hit=True):
                fields = {"request_id": event.request_id, "tenant": event.tenant}
                self._write(None, event.t, {**fields, "outcome": "cached"})
            case _:
                pass  # the rest is not of one request

    def _write(
        self, timeline: RequestTimeline | None, now: float, fields: dict[str, object]
    ) -> None:
        if timeline is not None:
            fields |= {
                "tenant": timeline.tenant,
                "priority": timeline.priority,
                "max_tokens": timeline.max_tokens,
                "queue_s": _rounded(timeline.queue_s),
                "ttft_s": _rounded(timeline.ttft_s),
                "e2e_s": _rounded(now - timeline.submitted),
            }
        prompt = self._prompts.pop(str(fields["request_id"]), None)
        if prompt is not None:
            fields["prompt"] = prompt
        known = {name: value for name, value in fields.items() if value is not None}
        self._logger.info("request", extra=known)

    def _file(self, path: str) -> QueueHandler:
        from pythonjsonlogger.json import JsonFormatter

        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(JsonFormatter("%(name)s %(message)s", timestamp=True))
        lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        self._listener = QueueListener(lines, file)
        self._listener.start()
        return QueueHandler(lines)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
