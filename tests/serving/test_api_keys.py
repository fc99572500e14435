"""Keys of tenants: read from where they may stand, shown nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmserve.core.tenants import Terms
from llmserve.serving.api_keys import (
    ENVIRONMENT,
    MOST_KEYS,
    Holder,
    Keyring,
    read_key_terms,
    terms_of,
)

GOLD, FREE = "sk-gold-0123456789", "sk-free-0123456789"
WRITTEN: dict[str, Any] = {
    "gold": {"key": GOLD, "weight": 3, "rate_limit_tps": 5000, "ttft_slo_ms": 500},
    "free": FREE,
}


def test_a_mapping_a_file_and_the_environment_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(WRITTEN))
    expected = read_key_terms(WRITTEN)
    assert read_key_terms(file) == read_key_terms(str(file)) == expected
    assert read_key_terms(None) == {}
    for text in (json.dumps(WRITTEN), str(file)):
        monkeypatch.setenv(ENVIRONMENT, text)
        assert read_key_terms(None) == expected
    assert terms_of(expected) == {
        "gold": Terms(weight=3, rate_limit_tps=5000, ttft_slo_ms=500), "free": Terms(),
    }  # fmt: skip


def test_each_key_opens_for_its_own_tenant_and_no_other_does() -> None:
    many = {"keys": ["key-one!", "key-two!"]}
    ring = Keyring("sk-own", read_key_terms({**WRITTEN, "many": many}))
    assert ring.holder([b"sk-own"]) == Holder(None)
    assert ring.holder([GOLD.encode()]) == Holder("gold")
    assert ring.holder([f" {FREE} ".encode()]) == Holder("free")
    assert ring.holder([b"key-two!"]) == Holder("many")
    for wrong in (b"", b" ", f"Bearer {GOLD}".encode(), f"{GOLD}x".encode(), GOLD[:-1].encode()):
        assert ring.holder([wrong]) is None
    assert ring.holder([]) is None


def test_of_several_keys_the_sessions_own_counts_and_else_the_first_that_is_right() -> None:
    ring = Keyring("sk-own", read_key_terms(WRITTEN))
    gold, free, own, wrong = GOLD.encode(), FREE.encode(), b"sk-own", b"sk-wrong"
    assert ring.holder([wrong, gold]) == ring.holder([gold, wrong]) == Holder("gold")
    assert ring.holder([wrong, free, b"", gold]) == Holder("free")
    assert ring.holder([gold, own]) == ring.holder([own, gold]) == Holder(None)
    assert ring.holder([wrong, b""]) is None


def test_keys_without_end_are_not_all_compared() -> None:
    ring = Keyring("sk-own", {})
    many = [b"sk-wrong-%d" % i for i in range(MOST_KEYS)]
    assert ring.holder([*many[:-1], b"sk-own"]) == Holder(None)
    assert ring.holder([*many, b"sk-own"]) is None


def test_no_key_is_in_any_repr() -> None:
    key_terms = read_key_terms(WRITTEN)
    shown = f"{key_terms!r} {key_terms['gold']} {Keyring('sk-own', key_terms)!r}"
    assert GOLD not in shown
    assert FREE not in shown
    assert "sk-own" not in shown


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"a": {"key": GOLD, "wieght": 2}}, "tenant 'a': .*wieght"),
        ({"a": {"key": GOLD, "weight": -2}}, "weight of a tenant must be above 0"),
        ({"a": {"weight": 2}}, "a key has 8 or more"),
        ({"a": "short"}, "a key has 8 or more"),
        ({"a": "with a space in it"}, "a key has 8 or more"),
        ({"a": {"key": 12345678}}, "Expected `str"),
        ({"": GOLD}, "a tenant is 1 to 128"),
        ("{broken", "holds no JSON object"),
    ],
)
def test_what_is_wrong_is_said_without_the_key(written: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        read_key_terms(written)
    assert GOLD not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__cause__ is None


def test_one_key_cannot_be_two_tenants() -> None:
    with pytest.raises(ValueError, match="'b' is another's too"):
        Keyring(None, read_key_terms({"a": GOLD, "b": GOLD}))
    with pytest.raises(ValueError, match="'a' is another's too"):
        Keyring(GOLD, read_key_terms({"a": GOLD}))


def test_other_keys_take_the_place_of_the_old_or_none_of_them_does() -> None:
    ring = Keyring("sk-own", read_key_terms({"a": GOLD}))
    with pytest.raises(ValueError, match="'b' is another's too"):
        ring.replace(read_key_terms({"c": "sk-c-0123456789", "b": "sk-own-but-longer", "d": FREE})
                     | read_key_terms({"b": "sk-c-0123456789"}))  # fmt: skip
    assert ring.holder([GOLD.encode()]) == Holder("a")
    assert ring.holder([FREE.encode()]) is None
    ring.replace(read_key_terms({"b": FREE}))
    assert ring.holder([GOLD.encode()]) is None
    assert ring.holder([FREE.encode()]) == Holder("b")
    assert ring.holder([b"sk-own"]) == Holder(None)
