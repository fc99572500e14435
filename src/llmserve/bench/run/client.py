"""A client of OpenAI's completions that does as little as it can: it is a driver's, and what it
spends on reading is not the server's.

AsyncOpenAI builds a checked model of every chunk; here msgspec takes the few fields that count.
A test holds both to reading the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from llmserve.bench.run.sse import Events
from llmserve.core.validation import unlike

if TYPE_CHECKING:
    import aiohttp


KEY = "LLMSERVE_API_KEY"


TIMEOUT_S = 3600.0
"""Of one request; the server's own limits are what is measured, not ours."""
_ASK_S = 60.0
"""Of what is asked besides completions: a server that never answers is reported in a minute."""
_IDLE_S = 4.0
"""A free connection is kept so long: less than uvicorn's 5 s, so that both do not meet."""
_DRAIN_S = 0.1
"""What follows the last event is read so long, for the connection's next request."""
_MOST_ERROR = 65_536
_DONE = b"[DONE]"


class StreamedReply(msgspec.Struct, frozen=True, kw_only=True):
    reason: str
    """Why it ended; "error" where the server did not say."""
    tokens: int
    """As `usage` says; the number of deliveries where there is none."""
    prompt_tokens: int | None
    text: str
    ended: float
    cached_tokens: int | None = None
    """Of the prompt, as `usage.prompt_tokens_details` says; None where it does not."""


class ReplyError(Exception):
    """The server refused, or broke off; `code` as its error object has it."""

    def __init__(self, message: str, code: str = "", status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class ReplyTimeout(ReplyError):
    """No end within TIMEOUT_S."""


class _ChoiceDelta(msgspec.Struct):
    text: str | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0
    prompt_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_ChoiceDelta] | None = None
    usage: _Usage | None = None
    error: Any = None


class Client:
    """Of one server. Make, use and close it on one loop; nothing connects before the first use."""

    def __init__(self, url: str, key: str, *, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise unlike("the url of a server", "http://host:port/v1", url)
        self.url = url.rstrip("/")
        self._loopback = parts.hostname in ("127.0.0.1", "::1", "localhost")
        self._key = key
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._chunk = msgspec.json.Decoder(_Chunk)

    async def complete(
        self, body: bytes, delivered: Callable[[], None], now: Callable[[], float]
    ) -> StreamedReply:
        """Send a completion whose body asks for a stream and its usage; call `delivered` as each
        text comes. Raises ReplyError."""
        import aiohttp

        try:
            async with self._open().post(f"{self.url}/completions", data=body) as response:
                if response.status != 200:
                    raise await _refused(response)
                return await self._read(response, delivered, now)
        except TimeoutError as error:
            raise ReplyTimeout(f"no reply within {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ReplyError(str(error) or type(error).__name__) from error

    async def _read(
        self, response: aiohttp.ClientResponse, delivered: Callable[[], None],
        now: Callable[[], float],
    ) -> StreamedReply:  # fmt: skip
        reading = _Reading(self._chunk, delivered)
        events = Events()
        async for read in response.content.iter_any():
            for data in events.feed(read):
                if reading.take(data):
                    ended = now()
                    await _drain(response)
                    return reading.reply(ended)
        return reading.reply(now())

    async def ask(self, method: str, url: str, body: object = None) -> Any:
        """JSON for JSON. Raises ReplyError; its `status` is 0 where nobody answered."""
        import aiohttp

        data = None if body is None else msgspec.json.encode(body)
        limit_s = min(self._timeout_s, _ASK_S)
        limit = aiohttp.ClientTimeout(total=limit_s)
        try:
            async with self._open().request(method, url, data=data, timeout=limit) as response:
                if response.status != 200:
                    raise await _refused(response)
                return msgspec.json.decode(await response.read())
        except TimeoutError as error:
            raise ReplyTimeout(f"no reply within {limit_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ReplyError(str(error) or type(error).__name__) from error

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S),
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={  # a reply that a server has kept is no measurement: no-store
                    "Authorization": f"Bearer {self._key}", "Content-Type": "application/json",
                    "Accept-Encoding": "identity", "Cache-Control": "no-store",
                },
                trust_env=not self._loopback,  # a proxy is no way to one's own machine
            )  # fmt: skip
        return self._session

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class _Reading:
    """One reply, event by event."""

    def __init__(
        self, decoder: msgspec.json.Decoder[_Chunk], delivered: Callable[[], None]
    ) -> None:
        self._decoder = decoder
        self._delivered = delivered
        self._reason = "error"
        self._deliveries = 0
        self._usage: _Usage | None = None
        self._texts: list[str] = []

    def take(self, data: bytes) -> bool:
        """Whether the stream has said that this is all."""
        if data.startswith(_DONE):
            return True
        chunk = self._decoder.decode(data)
        if chunk.error:
            raise _error_of(chunk.error, 200)
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices or ():
            if choice.text:
                self._deliveries += 1
                self._texts.append(choice.text)
                self._delivered()
            self._reason = choice.finish_reason or self._reason
        return False

    def reply(self, ended: float) -> StreamedReply:
        usage = self._usage
        details = None if usage is None else usage.prompt_tokens_details
        return StreamedReply(
            reason=self._reason,
            tokens=self._deliveries if usage is None else usage.completion_tokens,
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            text="".join(self._texts),
            ended=ended,
            cached_tokens=None if details is None else details.cached_tokens,
        )


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Else the connection could not be used again; a server that never ends is left alone."""
    if not response.content.at_eof():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                async for _ in response.content.iter_any():
                    pass


async def _refused(response: aiohttp.ClientResponse) -> ReplyError:
    raw = await response.content.read(_MOST_ERROR)
    try:
        body = msgspec.json.decode(raw)
    except ValueError:
        body = raw.decode(errors="replace")
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    return _error_of(body, response.status)


def _error_of(body: Any, status: int) -> ReplyError:
    if not isinstance(body, dict):
        return ReplyError(f"{status}: {str(body)[:500]}", status=status)
    code = body.get("code")
    message = str(body.get("message") or body.get("detail") or body)[:500]
    return ReplyError(message, "" if code is None else str(code), status)
