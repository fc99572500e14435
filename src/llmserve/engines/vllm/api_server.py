"""vLLM's own OpenAI application, with every request going through our admission control.

The application sees an EngineClient. Its `generate` passes each sequence to `submit`, so that
its order and its refusal are decided where all other requests are decided; the engine later gets
vLLM's own objects back out of the request's payload. All else goes to the AsyncLLM.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import suppress
from typing import Any

from llmserve.core.bounds import BOUNDS
from llmserve.core.types import SamplingParams
from llmserve.engines.base import Submission, Submit
from llmserve.engines.call_formats import DEFAULT, format_of
from llmserve.engines.vllm.convert import Payload
from llmserve.engines.vllm.private_api import ARG_PARSER, imported

API_OPTIONS = frozenset({
    "chat_template", "chat_template_content_format", "default_chat_template_kwargs",
    "enable_auto_tool_choice", "enable_force_include_usage", "enable_prompt_tokens_details",
    "exclude_tools_when_tool_choice_none", "response_role", "return_tokens_as_token_ids",
    "tool_call_parser", "tool_parser_plugin", "tool_server", "tool_strict_level",
    "trust_request_chat_template",
})  # fmt: skip
"""Options of vLLM's server, not of its engine, that mean something inside a kernel."""

API_PATHS = {
    "/v1/models": "GET", "/version": "GET",
    "/v1/chat/completions": "POST", "/v1/completions": "POST", "/v1/responses": "POST",
    "/v1/messages": "POST", "/v1/messages/count_tokens": "POST",
    "/tokenize": "POST", "/detokenize": "POST",
}  # fmt: skip
"""What of vLLM's application is served; the rest of it would act on the engine behind our back."""


def build_api(
    llm: Any, engine_args: dict[str, Any], api_args: dict[str, Any], template: str | None = None
) -> Any:
    """Build the FastAPI application, without an engine. Imports for a second: in a thread.

    template: the chat template that is in use.
    """
    # torch would warn in whatever cell is running that there is no triton
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    from vllm.entrypoints.launchers.app import build_app
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = imported(ARG_PARSER)(FlexibleArgumentParser()).parse_args([])
    config = llm.vllm_config
    options = {
        **tool_options(template, api_args),
        "enable_prompt_tokens_details": True,
        "tool_strict_level": "parameter",  # a tool's arguments fit its schema, asked for or not
        **engine_args,
        **api_args,
        "served_model_name": [config.model_config.served_model_name],
        "structured_outputs_config": config.structured_outputs_config,
        "disable_fastapi_docs": True,
    }
    for name, value in options.items():
        setattr(args, name, value)
    app = build_app(args, ("generate",), config.model_config)
    # its own metrics are not served here, and would look at each piece of each reply
    app.user_middleware = [one for one in app.user_middleware if "Prometheus" not in str(one.cls)]
    app.middleware_stack = None  # it was put together already, and will be anew
    return app


_PARSERS = {"hermes": "hermes", "llama": "llama3_json", "mistral": "mistral"}
"""vLLM's parser of each format of calls."""


def tool_options(template: str | None, api_args: Mapping[str, Any]) -> dict[str, Any]:
    """Options by which calls are read as the chat template asks for them; none where the user says
    how."""
    if {"enable_auto_tool_choice", "tool_call_parser"} & api_args.keys():
        return {}
    form = format_of(template) or DEFAULT
    return {"enable_auto_tool_choice": True, "tool_call_parser": _PARSERS[form.name]}


async def open_api(app: Any, llm: Any, submit: Submit) -> None:
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state

    await init_app_state(make_client(llm, submit), app.state, app.state.args, ("generate",))


def make_client(llm: Any, submit: Submit) -> Any:
    """An instance of vLLM's abstract EngineClient: ours where `ApiServer` says so, else the LLM."""
    from vllm.engine.protocol import EngineClient

    ours = {"generate", "abort", "errored", "is_running"}
    forwarded = {name: _forward(name) for name in EngineClient.__abstractmethods__ - ours}
    inherited = {
        name: _forward(name)
        for name in vars(EngineClient)
        if not name.startswith("_") and name not in ours and name not in forwarded
    }
    members = {**inherited, **forwarded}
    return type("ApiServerClient", (ApiServer, EngineClient), members)(llm, submit)


def _forward(name: str) -> property:
    return property(lambda server: getattr(server.llm, name))


class ApiServer:
    def __init__(self, llm: Any, submit: Submit) -> None:
        self.llm = llm
        self._submit = submit
        self._open: dict[str, list[Submission]] = {}

    errored, is_running = False, True
    """So it says of an engine that has just died, too: a request goes to our queue all the same,
    and waits there for the next one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """One sequence of ours for each of `n`, put together again as vLLM would have."""
        parts: list[Submission] = []
        self._open[request_id] = parts
        try:
            for index in range(sampling_params.n):
                parts.append(self._ask(prompt, sampling_params, request_id, index, options))
            merge = Merge(sampling_params, request_id)
            if len(parts) == 1:
                async for chunk in parts[0]:
                    if (output := merge.take(0, chunk.raw)) is not None:
                        yield output
            else:
                async for index, chunk in _arrivals(parts):
                    if (output := merge.take(index, chunk.raw)) is not None:
                        yield output
        finally:
            self._open.pop(request_id, None)
            for part in parts:
                part.cancel()

    async def abort(self, request_id: str | Iterable[str]) -> None:
        for one in (request_id,) if isinstance(request_id, str) else request_id:
            for part in self._open.get(one, ()):
                part.cancel()

    def _ask(
        self, prompt: Any, params: Any, request_id: str, index: int, options: dict[str, Any]
    ) -> Submission:
        from vllm.sampling_params import RequestOutputKind

        one = params.clone()
        one.n, one.output_kind = 1, RequestOutputKind.DELTA
        if one.seed is not None:
            one.seed += index  # as vLLM draws n different ones from one seed
        ids = tuple(prompt.get("prompt_token_ids") or (0,))
        if prompt.get("prompt") is None:
            # or vLLM's routes would look for the text of these ids at every token of the reply
            prompt = {**prompt, "prompt": ""}
        room = max(1, self.llm.model_config.max_model_len - len(ids))
        most = int(BOUNDS["max_tokens"].high)
        return self._submit(
            id=request_id if params.n == 1 else f"{request_id}-{index}",
            prompt_ids=ids,
            sampling=SamplingParams(max_tokens=min(one.max_tokens or room, most)),
            priority=options.pop("priority", 0) or None,
            payload=Payload(prompt, one, options),
        )


class Merge:
    """Deltas of single sequences, as the whole that was asked for."""

    def __init__(self, params: Any, request_id: str) -> None:
        self._kind = params.output_kind.name
        self._unfinished = params.n
        self._request_id = request_id
        self._whole: Any = None

    def take(self, index: int, output: Any) -> Any:
        """Return what to send now, if anything."""
        output.request_id = self._request_id
        for part in output.outputs:
            part.index = index
        self._unfinished -= output.finished
        output.finished = not self._unfinished
        if self._kind == "DELTA":
            return output
        if self._whole is None:
            self._whole = output
        else:
            self._whole.add(output, aggregate=True)
        if self._kind == "CUMULATIVE" or output.finished:
            self._whole.outputs.sort(key=lambda part: part.index)
            return self._whole
        return None


async def _arrivals(parts: list[Submission]) -> AsyncIterator[tuple[int, Any]]:
    """Chunks of all parts as they come; raises what the first failing one raises."""
    box: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def feed(index: int, part: Submission) -> None:
        async for chunk in part:
            box.put_nowait((index, chunk))

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for index, part in enumerate(parts):
                group.create_task(feed(index, part))

    feeding = asyncio.create_task(all_of_them())
    feeding.add_done_callback(lambda _: box.put_nowait((-1, None)))
    try:
        while (arrival := await box.get())[0] >= 0:
            yield arrival
        try:
            await feeding
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
    finally:
        feeding.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await feeding
