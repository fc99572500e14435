"""`serve`: a Session from plain arguments."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from llmserve.core.knobs import SPECS, Knobs
from llmserve.core.validation import flag
from llmserve.engines import registry
from llmserve.entrypoints.http.options import EndpointOptions
from llmserve.entrypoints.session.engine_launch import EngineLaunch
from llmserve.entrypoints.session.switches import Switches
from llmserve.serving.api_keys import Source, read_key_terms
from llmserve.serving.interpreter import GC_THRESHOLD, SWITCH_INTERVAL_S

if TYPE_CHECKING:
    from llmserve.entrypoints.session.session import Session
    from llmserve.observe.request_log_lines import LogOptions


def serve(
    model: str | None = None,
    engine: str = registry.AUTO,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    api_key: str | None = None,
    api_keys: Source = None,
    cors_origins: str | Iterable[str] | None = None,
    allow_special_tokens: bool = False,
    knobs: Mapping[str, object] | None = None,
    response_cache: bool | Mapping[str, object] | None = None,
    log_requests: bool | str | os.PathLike[str] | Mapping[str, object] | None = None,
    strict: bool = True,
    switch_interval_s: float | None = SWITCH_INTERVAL_S,
    gc_threshold: int | None = GC_THRESHOLD,
    **options: object,
) -> Session:
    """Start a server in this process's background and return when it answers.

        session = llmserve.serve()
        session = llmserve.serve("Qwen/Qwen2.5-0.5B-Instruct", max_num_seqs=8, dtype="float32")

    model: a hub id or a folder; None is the bundled toy storyteller.
    engine: one that `llmserve engines` lists, or "auto": vLLM where there is a GPU, else torch.
    host: this machine alone by default; "0.0.0.0" lets others in who know the key.
    port: 0 takes a free one; a taken one raises OSError here, in the cell.
    api_key: None makes a random one. It is never printed; read `session.api_key`.
    api_keys: keys of tenants, with their terms (`serving/api_keys.py`): a mapping or a JSON file,
        else the environment's LLMSERVE_API_KEYS. A request with such a key is that tenant's.
    cors_origins: pages of these origins (["https://app.example"], "*" for all) may call it.
    allow_special_tokens: True reads special tokens that a message spells as tokens, not as text.
    response_cache: True, or {"ttl_s": 300, "max_entries": 1000}: keep replies of certain requests.
    log_requests: a JSON line per request: to a file, or with True to the logger
        `llmserve.requests`; {"to": path, "prompts": True} writes the prompts too.
    strict: False ignores unknown fields of requests (docs/http.md) in place of answering 400.
    switch_interval_s, gc_threshold: the interpreter's while serving, so that neither a cell that
        computes nor a look for garbage stops streams (`serving/interpreter.py`). None leaves it.
    knobs: first values of knobs by name (docs/knobs.md), where keywords would not do.
    options: names of knobs are their first values, too; the rest goes to the engine
        (docs/engines.md), which refuses what it does not know by name (TypeError).

    Raises KnobError for a knob's wrong value, ValueError for another wrong one, EngineError with
    the engine's last words where it cannot start. Hold the session: one that nobody holds closes.
    """
    first = {name: options.pop(name) for name in list(options) if name in SPECS}
    first.update(knobs or {})
    return _opened(
        registry.default() if engine == registry.AUTO else engine,
        options if model is None else {"model": model, **options},
        address=(host, port),
        api_key=api_key or f"sk-llmserve-{secrets.token_urlsafe(24)}",
        knobs=Knobs().changed(first),
        switches=Switches.read(switch_interval_s, gc_threshold),
        key_terms=read_key_terms(api_keys),
        endpoint=EndpointOptions.read(response_cache, cors_origins, strict),
        allow_special_tokens=flag("allow_special_tokens", allow_special_tokens),
        log=_log(log_requests),
    )


def _opened(engine: str, options: Mapping[str, object], **parts: Any) -> Session:
    """A session of these parts, imported while the engine's process imports its own."""
    with EngineLaunch(engine, options) as launch:
        from llmserve.entrypoints.session.session import Session

        return Session(launch=launch, **parts)


def _log(asked: bool | str | os.PathLike[str] | Mapping[str, object] | None) -> LogOptions | None:
    if asked is None:
        return None
    from llmserve.observe.request_log_lines import LogOptions

    return LogOptions.read(asked)
