"""A child for tests of `engines.child`: sends many frames at once, then echoes."""

from __future__ import annotations

import sys
from functools import partial

from llmserve.engines.process.child import ParentLink

FRAMES = 3000
SIZE = 1000


def main() -> None:
    link = ParentLink(int(sys.argv[1]), bytes)
    for number in range(FRAMES):
        link.send(partial(frame, number))
    sys.stderr.write("did not wait\n")
    while True:
        echo = link.inbox.get()
        assert isinstance(echo, bytes)
        if echo == b"die":
            raise SystemExit("last words")
        link.send(partial(bytes, echo))


def frame(number: int) -> bytes:
    return number.to_bytes(4, "big") * (SIZE // 4)


if __name__ == "__main__":
    main()
