"""`echo`: a prompt as text, for the answer to begin with."""

from __future__ import annotations

from collections.abc import Sequence

from llmserve.core.types import PromptLogprobs
from llmserve.engines.tokenizer import Tokenizer
from llmserve.entrypoints.http.logprobs import Placed
from llmserve.entrypoints.http.prompts import Ids
from llmserve.entrypoints.http.token_places import TokenPlace, TokenPlaces
from llmserve.entrypoints.http.token_texts import TokenTexts
from llmserve.serving.tokenize import tokenised


class EchoedPrompt:
    """One prompt: its text, in which each of its tokens has a place."""

    def __init__(self, texts: TokenTexts, ids: Ids, text: str) -> None:
        """text: as the client wrote it, or the ids decoded. What the model read is echoed instead
        where the tokenizer changed it, by a normal form for example."""
        self.text = text
        for bare in (False, True):
            self._places, exact = _placed(texts, ids, text, bare)
            if exact:
                return
        read = b"".join([texts.data(token) or b"" for token in ids])
        self.text = read.decode("utf-8", "replace")
        self._places, _ = _placed(texts, ids, self.text, False)

    def placed(self, logprobs: PromptLogprobs) -> list[Placed]:
        return list(zip(self._places, logprobs, strict=True))


async def echoes(
    tokenizer: Tokenizer, texts: TokenTexts, prompts: Sequence[str | list[int]], ids: Sequence[Ids]
) -> tuple[EchoedPrompt, ...]:
    """Of each prompt and its token ids."""

    def echoed(prompt: str | list[int]) -> EchoedPrompt:
        text = prompt if isinstance(prompt, str) else tokenizer.decode(own)
        return EchoedPrompt(texts, own, text)

    found = []
    for prompt, own in zip(prompts, ids, strict=True):
        # each token is looked at: to place one takes as long as to read some characters
        found.append(await tokenised(16 * len(own), echoed, prompt))
    return tuple(found)


def _placed(texts: TokenTexts, ids: Ids, text: str, bare: bool) -> tuple[list[TokenPlace], bool]:
    places = TokenPlaces(texts, prompt=True, bare=bare)
    found = places.push(text, ids) + places.end(cut=False, silent=False)
    return found, places.exact
