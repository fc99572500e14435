"""Paths that clients know from other servers, and why they are not here."""

from __future__ import annotations

from llmserve.entrypoints.http.errors import ApiError

SERVED = "/v1/chat/completions, /v1/completions, /v1/responses and /v1/models"

_GENERATES = (
    "the model here writes text, and was not trained to {task}: run a model that was in a server "
    "of its own, such as `vllm serve MODEL --runner pooling`"
)
_RANKS = _GENERATES.format(task="compare texts, so that its hidden states rank them poorly")
_ONLY_TEXT = "the model here reads and writes text alone"
_NOTHING_KEPT = "this server keeps nothing between requests"

NOT_SERVED: dict[str, tuple[int, str]] = {
    "/v1/embeddings": (400, _RANKS),
    "/v2/embed": (400, _RANKS),
    "/v1/rerank": (400, _RANKS),
    "/v2/rerank": (400, _RANKS),
    "/rerank": (400, _RANKS),
    "/v1/score": (400, _RANKS),
    "/score": (400, _RANKS),
    "/pooling": (400, _RANKS),
    "/classify": (400, _GENERATES.format(task="classify")),
    "/v1/moderations": (400, _GENERATES.format(task="judge texts")),
    "/v1/audio": (400, _ONLY_TEXT),
    "/v1/images": (400, _ONLY_TEXT),
    "/v1/videos": (400, _ONLY_TEXT),
    "/v1/realtime": (400, _ONLY_TEXT),
    "/v1/responses": (404, f"{_NOTHING_KEPT}: send the conversation as input items"),
    "/v1/conversations": (404, f"{_NOTHING_KEPT}: send the conversation as input items"),
    "/v1/chat/completions": (404, f"{_NOTHING_KEPT}, completions neither"),
    "/v1/assistants": (404, f"{_NOTHING_KEPT}: send the whole conversation each time"),
    "/v1/threads": (404, f"{_NOTHING_KEPT}: send the whole conversation each time"),
    "/v1/files": (404, _NOTHING_KEPT),
    "/v1/uploads": (404, _NOTHING_KEPT),
    "/v1/vector_stores": (404, _NOTHING_KEPT),
    "/v1/batches": (404, f"{_NOTHING_KEPT}: send the requests themselves, at a low priority"),
    "/v1/fine_tuning": (404, "this server trains nothing"),
    "/v1/messages": (404, "Anthropic's API is served with the vllm engine alone"),
    "/v1/completions": (404, f"{_NOTHING_KEPT}, completions neither"),
}
"""Each with its status, for it and for all below it. 400 where no request of its kind can be
answered by the model, 404 where there is nothing by that name."""


def not_served(path: str) -> ApiError | None:
    """What is said of a path that has no route; None where it is known nowhere."""
    found = next(
        (known for known in NOT_SERVED if path == known or path.startswith(f"{known}/")), None
    )
    if found is None:
        return None
    status, why = NOT_SERVED[found]
    code = "unsupported_endpoint" if status == 400 else "unknown_url"
    return ApiError(status, f"{path} is not served: {why}. Served are {SERVED}.", code=code)
