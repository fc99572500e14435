"""What every route reads of the service."""

from __future__ import annotations

import hashlib

from llmserve import __version__
from llmserve.engines.base import EngineInfo
from llmserve.engines.tokenizer import Tokenizer
from llmserve.entrypoints.http.errors import ApiError, not_ready
from llmserve.entrypoints.http.options import DEFAULTS, EndpointOptions
from llmserve.entrypoints.http.pacing import Pacer
from llmserve.entrypoints.http.response_cache import ReplyCache
from llmserve.entrypoints.http.route_fields import check_fields, of_route
from llmserve.entrypoints.http.token_texts import TokenTexts
from llmserve.serving.service import Service


class EndpointState:
    """The service, and its model once there is one: before that, 503 with Retry-After."""

    def __init__(self, service: Service, options: EndpointOptions = DEFAULTS) -> None:
        self.service = service
        self.strict = options.strict
        self.cache = ReplyCache(service, options.cache)
        self.pacer = Pacer(self._longest_s)
        self._texts: TokenTexts | None = None
        self._fingerprint: str | None = None

    def _longest_s(self) -> float:
        return self.service.board.current.stream_interval_ms / 1e3

    @property
    def info(self) -> EngineInfo:
        """While the engine sleeps or is restarted this is what it was: requests may queue."""
        if self.service.supervisor.state == "new":
            raise not_ready()
        return self.service.engine.info

    @property
    def context(self) -> int:
        """Its length in tokens; 0 before there is a model."""
        service = self.service
        return 0 if service.supervisor.state == "new" else service.engine.info.max_model_len

    @property
    def tokenizer(self) -> Tokenizer:
        return self.service.engine.tokenizer

    @property
    def texts(self) -> TokenTexts:
        if self._texts is None:
            self._texts = TokenTexts(self.tokenizer)
        return self._texts

    def check_fields(self, path: str, raw: bytes) -> dict[str, str]:
        """ApiError 400 where a body asks for what the route does not read; headers to add."""
        return check_fields(raw, of_route(path), strict=self.strict)

    @property
    def fingerprint(self) -> str:
        """The same while equal requests are computed alike: of the model, the engine and how it
        computes, and this release."""
        if self._fingerprint is None:
            info = self.info
            parts = (
                __version__, info.engine, info.model_id, info.dtype, info.device,
                str(info.max_model_len), str(info.vocab_size),
            )  # fmt: skip
            found = hashlib.sha256("\0".join(parts).encode()).hexdigest()
            self._fingerprint = f"fp_{found[:10]}"
        return self._fingerprint

    def check_model(self, name: str | None) -> EngineInfo:
        """The served model; ApiError 404 where another is asked for. No name means this one."""
        info = self.info
        if name is not None and name != info.model_id:
            raise ApiError(
                404,
                f"the model {name!r} does not exist here; {info.model_id!r} is served",
                param="model",
                code="model_not_found",
            )
        return info
