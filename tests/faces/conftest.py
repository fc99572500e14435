from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.shells import Shell, shell


@pytest.fixture
def ip() -> Iterator[Shell]:
    """A shell with the extension loaded and nothing running."""
    with shell() as one:
        one.ok("%load_ext llmserve")
        yield one


@pytest.fixture
def served(ip: Shell) -> Shell:
    """A shell with a fast simulator running."""
    ip.ok("%llmserve start --engine simulator prefill_ms=1 decode_ms=1")
    return ip
