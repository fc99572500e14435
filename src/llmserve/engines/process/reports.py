"""How an engine's process tells its kernel something."""

from __future__ import annotations

from functools import partial

import msgspec

from llmserve.engines.process.child import ParentLink
from llmserve.engines.process.messages import FromChild, Stepped, packed

_encode = msgspec.msgpack.Encoder().encode


def send(link: ParentLink, message: FromChild) -> None:
    """It is encoded in the link's own thread: a step waits for nothing."""
    link.send(partial(_encoded, message))


def _encoded(message: FromChild) -> bytes:
    return _encode(packed(message) if isinstance(message, Stepped) else message)
