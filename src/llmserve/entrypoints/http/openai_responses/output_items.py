"""The output items of one response as they grow, and the events that tell of it. Pure.

One item is open at most. The whole answer is what the events add up to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Event = dict[str, Any]
Fields = dict[str, Any]


class OutputItems:
    def __init__(self, id: str) -> None:
        """id: of the response, which those of its items are made from."""
        self._id = id
        self.items: list[Fields] = []
        """The items that are whole, and the open one."""
        self._open = ""
        """The type of the open item."""
        self._pieces: list[str] = []
        self._logprobs: list[Fields] = []

    def text(self, delta: str, logprobs: Sequence[Fields] = ()) -> list[Event]:
        """More of a message, which begins with it where none is open."""
        events = [] if self._open == "message" else self.begin_message()
        self._pieces.append(delta)
        self._logprobs += logprobs
        brief = [_brief(one) for one in logprobs]
        more = self._event("output_text.delta", content_index=0, delta=delta, logprobs=brief)
        return [*events, more]

    def begin_message(self) -> list[Event]:
        message = {"type": "message", "role": "assistant", "content": []}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return [*self._begin("msg", message), self._event("content_part.added", content_index=0,
                part=part)]  # fmt: skip

    def begin_call(self, call_id: str, name: str) -> list[Event]:
        call = {"type": "function_call", "call_id": call_id, "name": name, "arguments": ""}
        return self._begin("fc", call)

    def arguments(self, delta: str) -> list[Event]:
        self._pieces.append(delta)
        return [self._event("function_call_arguments.delta", delta=delta)]

    def close(self, status: str = "completed") -> list[Event]:
        """End the open item, if there is one."""
        if not self._open:
            return []
        item = {**self.items[-1], "status": status}
        said, logprobs = "".join(self._pieces), self._logprobs
        if self._open == "message":
            part = {"type": "output_text", "text": said, "annotations": [], "logprobs": logprobs}
            item["content"] = [part]
            brief = [_brief(one) for one in logprobs]
            events = [
                self._event("output_text.done", content_index=0, text=said, logprobs=brief),
                self._event("content_part.done", content_index=0, part=part),
            ]
        else:
            item["arguments"] = said
            events = [
                self._event("function_call_arguments.done", name=item["name"], arguments=said)
            ]
        self.items[-1] = item
        place = len(self.items) - 1
        events.append({"type": "response.output_item.done", "output_index": place, "item": item})
        self._open, self._pieces, self._logprobs = "", [], []
        return events

    def _begin(self, prefix: str, item: Fields) -> list[Event]:
        closing = self.close()
        place = len(self.items)
        item = {"id": f"{prefix}_{self._id}_{place}", "status": "in_progress", **item}
        self.items.append(item)
        self._open = item["type"]
        added = {"type": "response.output_item.added", "output_index": place, "item": item}
        return [*closing, added]

    def _event(self, kind: str, **fields: Any) -> Event:
        place = len(self.items) - 1
        item = self.items[place]["id"]
        return {"type": f"response.{kind}", "item_id": item, "output_index": place, **fields}


def _brief(logprob: Fields) -> Fields:
    """Events name a token and its alternatives without their bytes."""
    top = [{"token": one["token"], "logprob": one["logprob"]} for one in logprob["top_logprobs"]]
    return {"token": logprob["token"], "logprob": logprob["logprob"], "top_logprobs": top}
