"""Messages whose text spells special tokens: read as text, so that it ends no turn and opens none.

A tokenizer knows a special token by its spelling, wherever it stands in the rendered conversation.
So every spelling in a message is broken by a mark that occurs nowhere else, and then the template
renders. What is still whole is the template's own. A second tokenizer reads the result, with the
same model, under which special tokens have other spellings: those that the template's own now get.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import msgspec

from llmserve.engines.tokenizer import ChatOptions

Messages = Sequence[Mapping[str, object]]
Render = Callable[[Messages, ChatOptions], str]
Encode = Callable[[Any, str], list[int]]
Span = tuple[int, int]
Reader = tuple[Any, dict[int, int]]

_PRIVATE = range(0xF0000, 0xFFFFE)
"""Characters that mean nothing by agreement: one that the conversation leaves out is the mark."""
_TRIES = 64


class SpecialTokens:
    """Those of one tokenizer, and how a conversation is read that spells one of them."""

    def __init__(self, backend: Any, words: Iterable[str] = ()) -> None:
        """backend: a tokenizers.Tokenizer. words: further ones, which the file marks as ordinary.

        One of a single character cannot be broken, and is left as it is.
        """
        self._backend = backend
        added, further = backend.get_added_tokens_decoder(), set(words)
        self._added = added
        self._special = {
            token.content: token_id
            for token_id, token in added.items()
            if (token.special or token.content in further) and len(token.content) > 1
        }
        spelled = sorted(
            self._special, key=len, reverse=True
        )  # the longest is the one that is read
        alone = {one.content for one in added.values() if one.single_word}
        whole = (rf"(?<!\w){re.escape(s)}(?!\w)" if s in alone else re.escape(s) for s in spelled)
        self._pattern = re.compile("|".join(whole) or r"(?!)")
        self._beginnings = sorted({text[:2] for text in spelled})
        self._fragments = sorted({
            cased
            for text in spelled
            for part in (text[:2], text[-2:])
            for cased in map("".join, product(*({c, c.lower(), c.upper()} for c in part)))
        })  # fmt: skip
        normalised = any(added[i].normalized for i in self._special.values())
        self._normalizer = backend.normalizer if normalised else None
        self._mark = _drawn()
        self._readers: dict[str, Reader] = {}

    def suspected(self, messages: Messages, options: ChatOptions) -> bool:
        """Whether some text of the client's holds a special token, or an end of one in any case: a
        template may put two texts side by side, or in capitals."""
        return any(
            fragment in text
            for given in strings([messages, options.tools, options.template_kwargs])
            for text in self._as_read(given)
            for fragment in self._fragments
        )

    def ids(
        self, messages: Messages, options: ChatOptions, render: Render, encode: Encode
    ) -> list[int]:
        """Token ids of the conversation, in which each special token is the template's own.

        ValueError where the model of the tokenizer takes a text for a special token by itself.
        """
        given = strings([messages, options.tools, options.template_kwargs])
        mark = _unused(self._mark, list(given))
        text = _render(messages, options, render, _breaking(mark, self._spans))
        strict = _render(messages, options, render, _breaking(mark, self._ends))
        own = list(self._spans(text))
        if len(own) != len(list(self._spans(strict))):  # the template joined two ends
            text = strict
            own = list(self._spans(text))
        elif _without(mark, text) == text and self._normalizer is None:
            return encode(self._backend, text)
        return self._encode(text, own, mark, encode)

    def _encode(self, text: str, own: Sequence[Span], mark: str, encode: Encode) -> list[int]:
        pieces, end = [], 0
        for begin, stop in own:
            token = _spelling(mark, self._special[text[begin:stop]])
            pieces += [_without(mark, text[end:begin]), token]
            end = stop
        pieces.append(_without(mark, text[end:]))
        reader, ids_of = self._reader(mark)
        ids = [ids_of.get(one, one) for one in encode(reader, "".join(pieces))]
        control = set(self._special.values())
        if sum(one in control for one in ids) != len(own):
            raise ValueError(
                "the text of a message spells a special token, and this model's tokenizer cannot "
                "read that as text; allow_special_tokens=true sends it as the token"
            )
        return ids

    def _reader(self, mark: str) -> Reader:
        """A tokenizer on the same model under which special tokens are spelled with the mark, and
        the ids of this one for those that it gives."""
        from tokenizers import Tokenizer

        if (kept := self._readers.get(mark)) is not None:
            return kept
        reader = Tokenizer(self._backend.model)
        for part in ("normalizer", "pre_tokenizer"):
            if (found := getattr(self._backend, part)) is not None:
                setattr(reader, part, found)
        control = set(self._special.values())
        spelled = {
            token_id: _respelled(token, _spelling(mark, token_id)) if token_id in control else token
            for token_id, token in self._added.items()
        }
        reader.add_tokens([token for one, token in spelled.items() if one not in control])
        reader.add_special_tokens([token for one, token in spelled.items() if one in control])
        ids: dict[Any, int] = {reader.token_to_id(one.content): i for i, one in spelled.items()}
        if mark == self._mark:
            self._readers[mark] = reader, ids
        return reader, ids

    def _spans(self, text: str) -> Iterator[Span]:
        """Where special tokens are spelled, from left to right, the longest of each place."""
        end = 0
        for begin in sorted({at for two in self._beginnings for at in _places(two, text)}):
            if begin >= end and (found := self._pattern.match(text, begin)) is not None:
                end = found.end()
                yield begin, end

    def _ends(self, text: str) -> Iterator[Span]:
        """Where the two first or the two last characters of one stand."""
        for at in sorted({at for two in self._fragments for at in _places(two, text)}):
            yield at, at + 2

    def _as_read(self, text: str) -> tuple[str, ...]:
        if self._normalizer is None:
            return (text,)
        return text, self._normalizer.normalize_str(text)


def _breaking(mark: str, places: Callable[[str], Iterable[Span]]) -> Callable[[str], str]:
    """A function that puts the mark behind the first character of each place in a text."""

    def broken(text: str) -> str:
        pieces, end = [], 0
        for begin, _ in places(text):
            pieces.append(text[end : begin + 1])
            end = begin + 1
        return mark.join([*pieces, text[end:]])

    return broken


def _render(
    messages: Messages, options: ChatOptions, render: Render, broken: Callable[[str], str]
) -> str:
    given = msgspec.structs.replace(
        options,
        tools=_mapped(options.tools, broken),
        template_kwargs=_mapped(options.template_kwargs, broken),
    )
    return render(_mapped(messages, broken), given)


def _respelled(token: Any, content: str) -> Any:
    from tokenizers import AddedToken

    return AddedToken(content, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)


def _places(part: str, text: str) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def _spelling(mark: str, token_id: int) -> str:
    return f"{mark}{token_id}{mark}"


def _without(mark: str, text: str) -> str:
    """The text before it was broken; a template may have written it as JSON."""
    return text.replace(mark, "").replace(_escaped(mark), "")


def _escaped(mark: str) -> str:
    return json.dumps(mark)[1:-1]


def _unused(first: str, texts: Sequence[str]) -> str:
    """A private character that no text holds, nor its JSON."""
    for mark in (first, *(_drawn() for _ in range(_TRIES))):
        if not any(mark in text or _escaped(mark) in text for text in texts):
            return mark
    raise ValueError("the messages hold too many of Unicode's private characters")


def _drawn() -> str:
    return chr(random.choice(_PRIVATE))


def strings(value: object) -> Iterator[str]:
    """Every text in it, names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from strings(name)
            yield from strings(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from strings(one)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The same with each text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(name, change): _mapped(one, change) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_mapped(one, change) for one in value)
    if isinstance(value, list):
        return [_mapped(one, change) for one in value]
    return value
