"""Every error as OpenAI's error object with its status: clients know what to do with those."""

from __future__ import annotations

import math

import msgspec

from llmserve.core.knobs import KnobError
from llmserve.core.types import ParamError, ParamTypeError
from llmserve.engines.base import EngineError
from llmserve.serving.requests import ContextExceeded
from llmserve.serving.stream import Refused, RequestTimeout

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An answer that is an error. `message` is shown to the user: it holds no secrets."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(
            {
                "error": {
                    "message": self.message,
                    "type": _TYPES.get(self.status) or _by_class(self.status),
                    "param": self.param,
                    "code": self.code,
                }
            }
        )


def invalid(param: str, said: object) -> ApiError:
    """400, for a value that cannot be taken; `said` is the sentence, or the error that holds it."""
    return ApiError(400, str(said), param=param, code="invalid_value")


class ClientGone(Exception):
    """The client left, so there is no one to answer."""


SERVING_ERRORS: tuple[type[Exception], ...] = (
    ApiError, Refused, RequestTimeout, EngineError, ParamError, KnobError,
)  # fmt: skip
"""What `as_api_error` takes; anything else is a defect and becomes a 500."""


def as_api_error(error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case Refused():
            return _refused(error)
        case RequestTimeout():
            return ApiError(504, str(error), code="request_timeout")
        case EngineError():
            return ApiError(503, str(error), code="engine_error", headers=_retry_after(None))
        case ParamError():
            return ApiError(400, str(error), param=error.param, code=_code(error))
        case KnobError():
            return ApiError(400, str(error), param=error.name, code="invalid_value")
        case _:
            return ApiError(500, "the server failed on this request", code="internal_error")


def _code(error: ParamError) -> str:
    match error:
        case ParamTypeError():
            return "invalid_type"
        case ContextExceeded():
            return "context_length_exceeded"
        case _:
            return "invalid_value"


def aborted() -> ApiError:
    """The work was stopped from the server's side while its client was still there."""
    return ApiError(503, "the request was stopped before it was done", code="aborted")


def not_ready(state: str = "new") -> ApiError:
    message = {
        "asleep": "the engine sleeps until POST /llmserve/wake; requests wait",
        "failed": "the engine does not start; the next request tries again",
        "new": "the model is still loading",
    }.get(state, "the engine is being restarted; requests wait")
    return ApiError(503, message, code="not_ready", headers=_retry_after(None))


def stopping() -> ApiError:
    return ApiError(503, "the server is stopping", code="stopping", headers=_retry_after(None))


def _refused(error: Refused) -> ApiError:
    rejected, message = error.rejected, str(error)
    headers = _retry_after(rejected.retry_after_s)
    match rejected.reason:
        case "too_long":
            return ApiError(400, message, param="prompt", code="context_length_exceeded")
        case "queue_full" | "no_place" | "rate_limit" | "slo":
            return ApiError(429, message, code=rejected.reason, headers=headers)
        case _:
            return ApiError(503, message, code=rejected.reason, headers=headers)


def _retry_after(seconds: float | None) -> dict[str, str]:
    """Whole seconds, as HTTP has them, and at least one, so that nobody comes back at once."""
    return {"retry-after": str(max(1, math.ceil(seconds or 0.0)))}


def _by_class(status: int) -> str:
    return "invalid_request_error" if status < 500 else "server_error"

