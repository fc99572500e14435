"""Why each request waits, told once whenever the reason changes."""

from __future__ import annotations

from collections.abc import KeysView

from llmserve.core.types import WaitReason


class WaitReasons:
    def __init__(self) -> None:
        self._reasons: dict[str, WaitReason] = {}
        self._news: dict[str, WaitReason] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._reasons

    @property
    def ids(self) -> KeysView[str]:
        return self._reasons.keys()

    def tell(self, request_id: str, reason: WaitReason) -> None:
        if self._reasons.get(request_id) != reason:
            self._reasons[request_id] = self._news[request_id] = reason

    def forget(self, request_id: str) -> None:
        """It waits no more."""
        self._reasons.pop(request_id, None)
        self._news.pop(request_id, None)

    def take(self) -> list[tuple[str, WaitReason]]:
        """What changed since the last call."""
        news, self._news = list(self._news.items()), {}
        return news
