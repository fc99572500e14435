"""POST /v1/completions."""

from __future__ import annotations

from llmserve.entrypoints.http import prompts, protocol
from llmserve.entrypoints.http.echo import echoes
from llmserve.entrypoints.http.generation import GeneratingRoute, Understood
from llmserve.entrypoints.http.protocol import CompletionBody
from llmserve.entrypoints.http.replies import CompletionReply, ReplyShape, RunningUsage, new_head
from llmserve.entrypoints.http.structured import check_supported


class CompletionRoute(GeneratingRoute):
    async def understand(self, raw: bytes) -> Understood:
        served = self.served
        body = protocol.decode(raw, CompletionBody)
        info = served.check_model(body.model)
        given = prompts.prompts_of(body)
        protocol.check_shape(body, len(given))
        special = body.add_special_tokens is not False
        ids = await prompts.all_ids(served.tokenizer, info, given, special)
        form_field = check_supported(body, served.service.engine)
        sampling = protocol.sampling(body, prompts.reply_tokens(ids, body, info))
        texts = protocol.texts_of(served.texts, body, sampling)
        head = new_head(served.service.new_id("cmpl"), info.model_id, served.fingerprint)
        plain = CompletionReply(
            head,
            texts,
            with_usage=body.include_usage,
            included=sampling.include_stop_str_in_output,
            logprobs=sampling.logprobs,
            prompt_logprobs=body.prompt_logprobs,
            echo=await echoes(served.tokenizer, texts, given, ids) if body.echo else (),
            n=body.choices,
        )
        reply: ReplyShape = plain
        if body.continuous_usage:
            each = [len(one) for one in ids for _ in range(body.choices)]
            reply = RunningUsage(plain, each)
        return Understood(
            id=head.id,
            prompts=tuple(ids),
            sampling=sampling,
            claims=body,
            reply=reply,
            n=body.choices,
            stream=bool(body.stream),
            form_field=form_field,
        )
