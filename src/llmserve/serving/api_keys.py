"""API keys of tenants, each with its terms: from a mapping, a JSON file or the environment.

    {"gold": {"key": "sk-…", "weight": 3, "rate_limit_tps": 5000}, "free": "sk-…"}

A key is kept as its digest, so nothing that holds this can show it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llmserve.core.bounds import SENDER
from llmserve.core.tenants import Terms
from llmserve.core.validation import plain

ENVIRONMENT = "LLMSERVE_API_KEYS"
Source = str | os.PathLike[str] | Mapping[str, Any] | None

MOST_KEYS = 16
"""The most keys of one request that are looked at: each costs a comparison with all there are."""
_SHORTEST_KEY = 8


class KeyTerms(NamedTuple):
    digests: tuple[bytes, ...]
    terms: Terms


class _Written(Terms, frozen=True, forbid_unknown_fields=True):
    """Keys and terms as a user writes them."""

    key: str | None = None
    keys: tuple[str, ...] = ()


class Holder(NamedTuple):
    """The holder of a key; `tenant` is None for the session's own, which may name any tenant."""

    tenant: str | None


class Keyring:
    """Looks up a key in constant time, so that nothing reveals which one was nearly right."""

    __slots__ = ("_holders", "_own")

    def __init__(self, own: str | None, key_terms: Mapping[str, KeyTerms]) -> None:
        self._own: dict[bytes, Holder] = {} if own is None else {digest(own): Holder(None)}
        self.replace(key_terms)

    def replace(self, key_terms: Mapping[str, KeyTerms]) -> None:
        """Replace all tenants' keys; on ValueError none of them."""
        holders = dict(self._own)
        for tenant, granted in key_terms.items():
            for one in granted.digests:
                if one in holders:
                    raise ValueError(f"the key of tenant {tenant!r} is another's too")
                holders[one] = Holder(tenant)
        self._holders = holders

    def __repr__(self) -> str:
        return f"Keyring({len(self._holders)} keys, hidden)"

    def holder(self, keys: Iterable[bytes]) -> Holder | None:
        """The holder of these keys, some of which may be nobody's; None where all of them are. The
        session's own key counts before a tenant's, and a tenant's before those that come after it.

        Each is compared with every key there is, and compared whole, whichever fits.
        """
        found = None
        for key in dict.fromkeys(islice(keys, MOST_KEYS)):
            holder = self._holder_of(key)
            if found is None or (holder is not None and holder.tenant is None):
                found = holder
        return found

    def _holder_of(self, key: bytes) -> Holder | None:
        brought = hashlib.sha256(key.strip()).digest()
        found = None
        for known, holder in self._holders.items():
            if hmac.compare_digest(brought, known):
                found = holder
        return found


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def read_key_terms(source: Source) -> dict[str, KeyTerms]:
    """Read tenants' keys and terms; None reads LLMSERVE_API_KEYS. No ValueError holds a key."""
    where = "api_keys"
    if source is None:
        source, where = os.environ.get(ENVIRONMENT) or {}, ENVIRONMENT
    if not isinstance(source, Mapping):
        text = os.fspath(source)
        if not text.lstrip().startswith("{"):
            where = f"{where} ({text})"
            text = Path(text).read_text()
        try:
            source = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.MsgspecError:
            raise ValueError(f"{where} holds no JSON object of tenants") from None
    return {tenant: _terms_of_one(tenant, written, where) for tenant, written in source.items()}


def terms_of(key_terms: Mapping[str, KeyTerms]) -> dict[str, Terms]:
    return {tenant: granted.terms for tenant, granted in key_terms.items()}


def _terms_of_one(tenant: str, written: Any, where: str) -> KeyTerms:
    try:
        SENDER["tenant"](tenant)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    try:
        fields = {"key": written} if isinstance(written, str) else plain(written)
        read = msgspec.convert(fields, _Written)
    except msgspec.MsgspecError as error:  # names the field and the types, never the value
        raise ValueError(f"{where}, tenant {tenant!r}: {error}") from None
    keys = read.keys if read.key is None else (read.key, *read.keys)
    if not keys or not all(map(_is_key, keys)):
        raise ValueError(
            f"{where}, tenant {tenant!r}: a key has {_SHORTEST_KEY} or more printable ASCII "
            "characters and no spaces"
        )
    terms = Terms(**{name: getattr(read, name) for name in Terms.__struct_fields__})
    return KeyTerms(tuple(_unique(map(digest, keys))), terms)


def _is_key(key: str) -> bool:
    plain = key.isascii() and key.isprintable() and " " not in key
    return plain and len(key) >= _SHORTEST_KEY


def _unique(digests: Iterable[bytes]) -> Iterable[bytes]:
    return dict.fromkeys(digests)
