"""A lean client of many streams in a process of its own: one thread, one epoll, no event loop.

Reads one JSON object per line and answers with lines. It imports nothing that is measured; of what
comes it notes when it came and how many words of text it had (a token of the simulator is a word).

    {"do": "streams", "streams": 256, ...}   opens so many; "begun" when each has had its first word
    {"do": "close"}                          what came, stream by stream; all are closed
    {"do": "requests", "places": 32, ...}    closed loops over kept connections, for so long
"""

from __future__ import annotations

import json
import re
import resource
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

_TEXT = re.compile(rb'"text": ?"([^"]+)"')
_ID = re.compile(rb'"id": ?"([^"]+)"')
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_END = b"0\r\n\r\n"


class Stream:
    """What came of one reply: times, and words with each."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.id, self.sent = sock, "", time.monotonic()
        self.times: list[float] = []
        self.words: list[int] = []
        self.frames = 0
        self.last = b""

    def read(self, spaces: bool) -> bool:
        """False at its end. spaces: frames may hold several words; else each is one."""
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return True
        now = time.monotonic()
        if spaces:
            texts = _TEXT.findall(data)
            frames, words = len(texts), sum(text.count(b" ") for text in texts)
            if texts and not self.times:
                words += 1
        else:
            frames = words = data.count(b'"text":')
        if words:
            if not self.times and (told := _ID.search(data)):
                self.id = told[1].decode()
            self.times.append(now)
            self.words.append(words)
            self.frames += frames
        elif data and not self.times:
            self.last = data[-300:]
        return bool(data)


class Place:
    """A kept connection that asks again and again."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.data, self.sent = sock, b"", 0.0

    def ask(self, raw: bytes) -> None:
        self.data, self.sent = b"", time.monotonic()
        self.sock.sendall(raw)


def request(asked: dict[str, Any], *, stream: bool, keep: bool) -> bytes:
    body = {
        "model": asked["model"], "prompt": asked["prompt"], "max_tokens": asked["max_tokens"],
        "stream": stream, "temperature": 0, "ignore_eos": True, **asked.get("body", {}),
    }  # fmt: skip
    raw = json.dumps(body).encode()
    head = (
        f"POST {asked['path']} HTTP/1.1\r\nHost: {asked['host']}\r\n"
        f"Connection: {'keep-alive' if keep else 'close'}\r\n"
        f"Authorization: Bearer {asked['key']}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


def connect(asked: dict[str, Any]) -> socket.socket:
    sock = socket.create_connection((asked["host"], asked["port"]))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def streams(asked: dict[str, Any], say: Callable[[object], None]) -> None:
    """Read until told to close."""
    raw, spaces = request(asked, stream=True, keep=False), bool(asked["spaces"])
    poll, every = select.epoll(), dict[int, Stream]()
    poll.register(0, select.EPOLLIN)
    for _ in range(asked["streams"]):
        one = Stream(connect(asked))
        one.sock.sendall(raw)
        one.sock.setblocking(False)
        every[one.sock.fileno()] = one
        poll.register(one.sock, select.EPOLLIN)
    told, ended = False, 0
    while True:
        for fd, _ in poll.poll():
            if fd == 0:
                sys.stdin.readline()
                poll.close()
                for one in every.values():
                    one.sock.close()
                say({"ended": ended, "streams": [_of(one) for one in every.values()]})
                return
            if not every[fd].read(spaces):
                if not every[fd].times:
                    raise SystemExit(f"a stream ended before its first word: {every[fd].last!r}")
                poll.unregister(fd)
                ended += 1
        if not told and all(one.times for one in every.values()):
            told = True
            say("begun")


def _of(one: Stream) -> dict[str, Any]:
    return {"id": one.id, "sent": one.sent, "times": one.times, "words": one.words,
            "frames": one.frames}  # fmt: skip


def requests(asked: dict[str, Any], say: Callable[[object], None]) -> None:
    """So many at once, each sending its next request when its last reply has ended."""
    stream = bool(asked["stream"])
    raw, poll = request(asked, stream=stream, keep=True), select.epoll()
    every = dict[int, Place]()
    done = list[tuple[str, float, float]]()
    for _ in range(asked["places"]):
        place = Place(connect(asked))
        every[place.sock.fileno()] = place
        poll.register(place.sock, select.EPOLLIN)
        place.ask(raw)
    end = time.monotonic() + asked["seconds"]
    while time.monotonic() < end:
        for fd, _ in poll.poll(1.0):
            place = every[fd]
            data = place.sock.recv(1 << 16)
            place.data += data
            if not data:
                raise SystemExit(f"the server closed a kept connection: {place.data[-300:]!r}")
            if _whole(place.data, stream):
                told = _ID.search(place.data)
                done.append((told[1].decode() if told else "", place.sent, time.monotonic()))
                place.ask(raw)
    for place in every.values():
        place.sock.close()
    say(done)


def _whole(data: bytes, stream: bool) -> bool:
    if stream:
        return data.endswith(_END)
    head, found, body = data.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if found and length is None:
        return data.endswith(_END)
    return bool(found) and length is not None and len(body) >= int(length[1])


def main() -> None:
    def say(what: object) -> None:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()

    for line in sys.stdin:
        asked = json.loads(line)
        before = resource.getrusage(resource.RUSAGE_SELF)
        {"streams": streams, "requests": requests}[asked["do"]](asked, say)
        after = resource.getrusage(resource.RUSAGE_SELF)
        say(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


if __name__ == "__main__":
    main()
