"""A cache of responses for requests that must get the same reply: off by default.

Only requests whose reply is certain (temperature 0, or a seed), only replies that came to their
end. A request for what is being generated waits for that and computes nothing. Each tenant has
its own by default: how soon a reply comes would reveal that another tenant sent the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec
from cachetools import TTLCache
from starlette.types import Scope

from llmserve.core.types import Chunk, Outcome, Request
from llmserve.core.validation import real, unlike, whole
from llmserve.serving.service import Service
from llmserve.serving.stream import Stream

Found = Literal["hit", "miss"]
CACHE_HEADER = "x-llmserve-cache"
"""`hit` when nothing had to be computed for the answer; absent where nothing may be cached."""


class CacheOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ttl_s: float = 300.0
    """How long a reply stays cached."""
    max_entries: int = 1000
    """Replies cached at most; the least recently used goes first."""
    shared: bool = False
    """Whether one tenant may be given what another's request computed."""

    @classmethod
    def read(cls, given: bool | Mapping[str, object] | None) -> CacheOptions | None:
        """True takes the defaults, a mapping names some; None where there is to be no cache.
        ValueError where a name or value is wrong."""
        if given is None or given is False:
            return None
        if given is True:
            return cls()
        if not isinstance(given, Mapping):
            raise unlike("response_cache", "True or a mapping", given)
        read = dict(given)
        if "ttl_s" in read:
            read["ttl_s"] = real("response_cache: ttl_s", read["ttl_s"], 0.001, 1e9, "s")
        if "max_entries" in read:
            entries = whole("response_cache: max_entries", read["max_entries"], 1, 1_000_000)
            read["max_entries"] = entries
        try:
            return msgspec.convert(read, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"response_cache: {error}") from None


class _Kept(NamedTuple):
    outcome: Outcome
    raw: Any
    """The reply as the engine's own application has it; None on our routes."""


class _Flight:
    """One generation and the other requests that wait for its reply."""

    def __init__(self, work: Stream) -> None:
        self.work = work
        self._raws: list[Any] = []
        self.followers: list[Stream] = []
        self.left = False
        """Whether the client that began it is gone."""

    def see(self, chunk: Chunk) -> None:
        if (payload := self.work.request.payload) is not None:
            self._raws.append(payload.copied(chunk.raw))

    def reply(self) -> _Kept:
        """All of it, once it has come to its end."""
        outcome, payload = self.work.outcome, self.work.request.payload
        assert outcome is not None  # it has ended
        return _Kept(outcome, payload.joined(self._raws) if payload is not None else None)


class ReplyCache:
    """Caches responses in front of `Service.submit`; on the loop's thread."""

    def __init__(self, service: Service, options: CacheOptions | None) -> None:
        self._service = service
        self._shared = options is not None and options.shared
        self._flights: dict[Hashable, _Flight] = {}
        self._kept: TTLCache[Hashable, _Kept] | None = (
            None
            if options is None
            else TTLCache(options.max_entries, options.ttl_s, timer=service.clock.now)
        )

    def submit(self, request: Request, *, anew: bool = False) -> tuple[Stream, Found | None]:
        """As `Service.submit`; whether the reply was cached, None where it may not be.

        `anew`: compute it whatever is here, and keep nothing. A hit counts against its tenant's
        rate of requests, and is Refused where that is used up.
        """
        if self._kept is None or anew or (content := _cache_key(request)) is None:
            return self._service.submit(request), None
        whose = None if self._shared else request.tenant
        key = (whose, self._service.engine.info.model_id, content)
        kept, flight = self._kept.get(key), self._flights.get(key)
        hit = kept is not None or flight is not None
        if hit:
            self._service.admit_kept(request)
        self._service.publisher.cache_looked(request, hit=hit)
        if kept is not None:
            stream = Stream(request, lambda: None)
            self._replay(stream, kept)
            return stream, "hit"
        if flight is not None:
            return self._follow(request, flight), "hit"
        flight = _Flight(self._service.submit(request))
        self._flights[key] = flight
        flight.work.share(
            lambda: self._wanted(key, flight),
            lambda failure: self._land(key, flight, failure),
            flight.see,
        )
        return flight.work, "miss"

    def _follow(self, request: Request, flight: _Flight) -> Stream:
        follower = Stream(request, lambda: self._unfollow(follower, flight))
        flight.followers.append(follower)
        return follower

    def _unfollow(self, follower: Stream, flight: _Flight) -> None:
        flight.followers.remove(follower)
        follower.end(Chunk(finish_reason="abort"), self._service.clock.now())
        if flight.left and not flight.followers:
            flight.work.cancel()

    def _wanted(self, key: Hashable, flight: _Flight) -> bool:
        """The client that began it leaves: the work goes on while others wait for it."""
        flight.left = True
        if not flight.followers:  # it takes a moment to end, and nobody may join it meanwhile
            self._remove(key, flight)
        return bool(flight.followers)

    def _remove(self, key: Hashable, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _land(self, key: Hashable, flight: _Flight, failure: Exception | None) -> None:
        """The work ended: its good end is kept, and all who waited get the end there was."""
        self._remove(key, flight)
        outcome = flight.work.outcome
        assert outcome is not None  # it has ended
        good = failure is None and outcome.finish_reason in ("stop", "length")
        reply = flight.reply() if good else None
        if reply is not None and self._kept is not None:
            self._kept[key] = reply
        for follower in flight.followers:
            if reply is not None:
                self._replay(follower, reply)
            else:
                last = Chunk(finish_reason=outcome.finish_reason)
                follower.end(last, self._service.clock.now(), failure)
        flight.followers.clear()

    def _replay(self, stream: Stream, reply: _Kept) -> None:
        now, outcome, payload = self._service.clock.now(), reply.outcome, stream.request.payload
        whole = Chunk(
            text=outcome.text,
            token_ids=outcome.token_ids,
            logprobs=outcome.logprobs,
            prompt_logprobs=outcome.prompt_logprobs,
            finish_reason=outcome.finish_reason,
            stop_reason=outcome.stop_reason,
            cached_tokens=outcome.usage.cached_tokens,
            raw=payload.copied(reply.raw) if payload is not None else None,
        )
        stream.put(whole, now)
        stream.end(whole, now)


def _cache_key(request: Request) -> Hashable | None:
    """Equal for requests that must get the same reply; None where chance has a part in it."""
    payload, sampling = request.payload, request.sampling
    if payload is not None:
        key: Hashable | None = payload.key
        return key
    certain = sampling.temperature == 0 or sampling.seed is not None
    return (request.prompt_ids, sampling) if certain else None


def looked(headers: dict[str, str], found: Found | None) -> None:
    """The header that says whether an answer was cached: one miss, and it was computed."""
    if found is not None and headers.get(CACHE_HEADER) != "miss":
        headers[CACHE_HEADER] = found


def asks_anew(scope: Scope) -> bool:
    """`Cache-Control: no-cache` or `no-store`, as HTTP has it."""
    directives = b",".join(value for name, value in scope["headers"] if name == b"cache-control")
    if not directives:
        return False
    words = {word.strip() for word in directives.lower().split(b",")}
    return not words.isdisjoint({b"no-cache", b"no-store"})
