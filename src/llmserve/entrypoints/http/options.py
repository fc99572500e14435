"""How one session's endpoint answers, beside who holds a key to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

from llmserve.core.validation import flag
from llmserve.entrypoints.http.cors import Origins, read_origins
from llmserve.entrypoints.http.response_cache import CacheOptions


class EndpointOptions(NamedTuple):
    cache: CacheOptions | None = None
    """None keeps no replies."""
    origins: Origins = ()
    """Those whose pages may call it and read its answers."""
    strict: bool = True
    """An unknown field of a body is 400, and not only named in a header."""

    @classmethod
    def read(
        cls,
        response_cache: bool | Mapping[str, object] | None,
        cors_origins: str | Iterable[str] | None,
        strict: object,
    ) -> Self:
        """As `llmserve.serve` takes them; ValueError names a wrong one."""
        return cls(
            CacheOptions.read(response_cache), read_origins(cors_origins), flag("strict", strict)
        )


DEFAULTS = EndpointOptions()
