"""Replies of given tokens, as the torch engine makes chunks of them, by tokenizers of all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

import llmserve.models
from llmserve.core.types import Chunk, Request, SamplingParams, TokenLogprob
from llmserve.engines.batching.sequence import Sequence as EngineSequence
from llmserve.engines.token_bytes import TokenBytes
from llmserve.engines.torch.live_request import LiveRequest
from llmserve.engines.torch.sampling.sampler import Draws
from llmserve.engines.torch.text.detokenize import Detokenizer

CLUSTERS = [
    "👩‍👩‍👧", "🏳️‍🌈", "👍🏽", "🇫🇷", "नमस्ते", "क्षि", "ज्ञ", "தமிழ்", "กำลัง", "ที่นี่", "สวัสดี", "שָׁלוֹם",
    "مَرْحَبًا", "‏‏", "漢字", "é", "e\u0301", "\u200b", "\ufffd", "\n\n", "\t", "  ", " ", "the ",
    "The keeper lit",    "lamp", "<|im_end|>", "<0x41>", "▁", "a", "t",
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(CLUSTERS), st.text(max_size=4)), max_size=12).map(
    "".join
)


class BackendTokenizer:
    """As much of `engines.Tokenizer` as places need, over one of the tokenizers library."""

    def __init__(self, backend: Any, chat_template: str | None = None) -> None:
        self.backend = backend
        self.chat_template = chat_template
        self._bytes = TokenBytes(backend)
        self.detokenizer = Detokenizer(backend)
        added = backend.get_added_tokens_decoder()
        self.special = sorted(token for token, one in added.items() if one.special)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.backend.decode(list(ids))
        return text

    def token_bytes(self, token_id: int) -> bytes | None:
        return self._bytes.of(token_id)

    def token_name(self, token_id: int) -> str:
        return self._bytes.name(token_id)

    def chat(self, *_: Any) -> list[int]:
        raise NotImplementedError


@cache
def bundled() -> BackendTokenizer:
    """Byte-level BPE, of the storyteller."""
    folder = Path(llmserve.models.__file__).parent / "tiny"
    return BackendTokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")))


@cache
def sentencepiece(strip: bool = True) -> BackendTokenizer:
    """As Llama 2's: ▁ for a space, bytes for what the vocabulary lacks; as Gemma's, where the
    first space stays."""
    words = ["▁The", "▁keeper", "▁lit", "▁", ".", "▁a", "é", "t", "e\u0301", "\n", "न", "म"]
    vocab = [("<unk>", 0.0), *((f"<0x{i:02X}>", 0.0) for i in range(256))]
    vocab += [(word, -1.0) for word in words]
    vocab += [(chr(c), -5.0) for c in range(97, 123) if chr(c) not in words]
    made = Tokenizer(models.Unigram(vocab, 0, byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    if strip:
        steps.append(decoders.Strip(" ", 1, 0))
        spaces.insert(0, normalizers.Prepend("▁"))
    made.normalizer = normalizers.Sequence(spaces)
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens(["<s>", "</s>"])
    return BackendTokenizer(made)


@cache
def wordpiece() -> BackendTokenizer:
    """As BERT's."""
    words = ["[UNK]", "the", "keep", "##er", "lit", "a", "lamp", ".", ",", "##s"]
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    from tokenizers import pre_tokenizers

    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece("##", cleanup=True)
    return BackendTokenizer(made)


def chunks(
    tokenizer: BackendTokenizer,
    ids: Sequence[int],
    *,
    prompt: Sequence[int] = (0,),
    eos: frozenset[int] = frozenset(),
    **sampling: Any,
) -> list[Chunk]:
    """One for each token until the reply ends, by the engine's own code; each token's likeliest is
    itself."""
    params = SamplingParams(max_tokens=len(ids), logprobs=1, **sampling)
    request = Request(id="r", prompt_ids=tuple(prompt), sampling=params, arrival=0.0)
    seq = EngineSequence(request, 0.0, len(prompt) + len(ids))
    stream = tokenizer.detokenizer.open(prompt, special=not params.skip_special_tokens)
    live = LiveRequest(seq, Draws(params, 0), stream)
    found: list[Chunk] = []
    for token in ids:
        seq.computed = len(seq.tokens)
        seq.tokens.append(token)
        delta = live.push(token, TokenLogprob(token, -0.5, ((token, -0.5),)), eos)
        found.append(
            Chunk(
                text=delta.text, token_ids=delta.token_ids, logprobs=delta.logprobs,
                finish_reason=delta.finish_reason, stop_reason=delta.stop_reason,
            )
        )  # fmt: skip
        if delta.finish_reason is not None:
            break
    return found


def joined(parts: Sequence[Chunk]) -> Chunk:
    """Several chunks as one, as they come when the loop was busy."""
    return Chunk(
        text="".join(part.text for part in parts),
        token_ids=tuple(token for part in parts for token in part.token_ids),
        logprobs=tuple(one for part in parts for one in part.logprobs or ()),
        finish_reason=parts[-1].finish_reason,
        stop_reason=parts[-1].stop_reason,
    )
