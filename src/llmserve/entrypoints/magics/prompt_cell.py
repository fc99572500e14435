"""A prompt from a cell: the reply streams as Markdown, and an interrupt ends this reply alone."""

from __future__ import annotations

import contextlib
import queue
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from llmserve.core.quantities import duration
from llmserve.core.types import Chunk, Outcome
from llmserve.entrypoints.magics.display import note, show
from llmserve.entrypoints.magics.user_errors import Interrupted
from llmserve.serving import requests
from llmserve.serving.requests import Prompt

if TYPE_CHECKING:
    from llmserve.entrypoints.session.session import Session
    from llmserve.serving.service import Service

_FRAME_S = 0.05
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)


def ask(session: Session, prompt: Prompt, options: Mapping[str, Any]) -> Outcome:
    """Show the reply as it comes, then a line of figures.

    Raises Interrupted with the reply so far left on the page; whatever else goes wrong is the
    service's own exception.
    """
    arrived: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    job: Future[Outcome] | None = None
    page = _Page(session.clock.now)
    try:
        page.open()
        job = session.runtime.submit(_forward(session.service, prompt, options, arrived.put))
        job.add_done_callback(lambda _: arrived.put(None))
        page.follow(arrived)
        outcome = job.result()
    except BaseException as error:
        if job is not None:
            job.cancel()
        if isinstance(error, KeyboardInterrupt):
            page.draw()
            raise Interrupted("this reply ends here; everything else goes on.") from None
        raise
    show(note(figures(outcome)))
    return outcome


def markdown(text: str) -> dict[str, str]:
    """The text for a page. Its tags are shown, not obeyed: a model may write anything."""
    parts = _CODE.split(text)
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return {"text/plain": text, "text/markdown": "".join(parts)}


def figures(outcome: Outcome) -> str:
    """`64 tokens · TTFT 45 ms · 210 tokens/s`."""
    tokens = outcome.usage.completion_tokens
    parts = [f"{tokens} token{'s' * (tokens != 1)}"]
    if outcome.ttft_s is not None:
        parts.append(f"TTFT {duration(outcome.ttft_s)}")
        decoding = outcome.e2e_s - outcome.ttft_s
        if tokens > 1 and decoding > 0:
            parts.append(f"{(tokens - 1) / decoding:,.0f} tokens/s")
    if outcome.finish_reason != "stop":
        parts.append(f"ended by {outcome.finish_reason}")
    return " · ".join(parts)


class _Page:
    """One Markdown display, redrawn at most every frame, and never left behind its text."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._text = ""
        self._shown = ""

    def open(self) -> None:
        self._update = show(markdown(""))

    def follow(self, arrived: queue.SimpleQueue[str | None]) -> None:
        """Draw what arrives until None does."""
        due = 0.0
        while True:
            behind = self._text != self._shown
            piece: str | None = ""
            with contextlib.suppress(queue.Empty):
                piece = arrived.get(timeout=max(0.0, due - self._now()) if behind else None)
            if piece is None:
                break
            self._text += piece
            if self._now() >= due:
                self.draw()
                due = self._now() + _FRAME_S
        self.draw()

    def draw(self) -> None:
        if self._text != self._shown:
            self._update(markdown(self._text))
            self._shown = self._text


async def _forward(
    service: Service, prompt: Prompt, options: Mapping[str, Any], put: Callable[[str], None]
) -> Outcome:
    stream = await requests.ask(service, prompt, options)
    try:
        async for chunk in stream:
            put(_text(chunk, stream.ready()))
    finally:
        stream.cancel()
    assert stream.outcome is not None  # set before the iteration ends
    return stream.outcome


def _text(chunk: Chunk, more: list[Chunk]) -> str:
    return chunk.text + "".join(each.text for each in more)
