"""Marks: special tokens as single characters that no text has, so that a conversation is one string to work on."""

from __future__ import annotations

import re
from collections.abc import Iterable

from leanseek.errors import CheckpointError
from leanseek.tokens.replay import Replays
from leanseek.tokens.tokenizer import Tokenizer, whole

# Surrogates cannot be encoded, so `plain` text has none. The last one is no token: it only cuts.
FIRST, LAST = 0xD800, 0xDFFF
CUT = chr(LAST)
_SPLIT = re.compile(f"([{chr(FIRST)}-{chr(LAST)}])")


class Marks:
    """The added tokens of a vocabulary as characters.

    Marked text is text in which such characters stand for tokens. Whatever a person or a model writes goes through
    `plain` first, so it cannot hold one: what is built from marks cannot be forged, and needs no escapes.

    Args:
        tokenizer: whose tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.replays: Replays | None = None  # how texts were said, where somebody remembers it
        # Reserved places are never written; V3's vocabulary has 800 of them.
        used = {i: text for i, text in tokenizer.added_tokens.items() if "place▁holder" not in text}
        # A vocabulary may have its ends among the ordinary tokens; their text is then not trusted to be them.
        used |= {i: "" for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None and i not in used}
        if len(used) > LAST - FIRST:
            raise CheckpointError(
                f"the tokenizer has {len(used):,} added tokens; at most {LAST - FIRST:,} are accepted"
            )
        self._id = {chr(FIRST + place): i for place, i in enumerate(used)}
        self.of_id = {i: mark for mark, i in self._id.items()}
        self.bos = "" if tokenizer.bos_id is None else self.of_id[tokenizer.bos_id]
        self.eos = self.of_id[tokenizer.eos_id]
        self._of_text = {used[i]: mark for mark, i in self._id.items()}
        longest_first = sorted(filter(None, self._of_text), key=len, reverse=True)
        self._texts = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def need(self, text: str) -> str:
        """Return the mark of a token given by its exact text.

        Raises:
            CheckpointError: the vocabulary has no such token.
        """
        if text not in self._of_text:
            raise CheckpointError(
                f"the tokenizer has no token {text!r}; this chat format needs it, give another by name"
            )
        return self._of_text[text]

    def find(self, text: str) -> str:
        """Return a token's mark; where the vocabulary lacks the token, its text, which then has to do."""
        return self._of_text.get(text, text)

    def within(self, texts: Iterable[str]) -> frozenset[str]:
        """Return the marks that stand in some marked texts."""
        return frozenset(character for text in texts for character in text if character in self._id)

    def trust(self, text: str) -> str:
        """Return marked text in which every token's text has become its mark: only for text that is ours."""
        return self._texts.sub(lambda found: self._of_text[found[0]], whole(text))

    def encode(self, marked: str) -> list[int]:
        """Return marked text's ids: marks as their tokens, what stands between them as plain text."""
        ids: list[int] = []
        for piece in _SPLIT.split(marked):
            if piece in self._id:
                ids.append(self._id[piece])
            elif piece and piece != CUT:
                said = self.replays.find(piece) if self.replays is not None else None
                ids += self._tokenizer.encode(piece) if said is None else said
        return ids

    def text(self, marked: str) -> str:
        """Return marked text as decoding its tokens would show it: special ones vanish, others are their text."""
        if not _SPLIT.search(marked):
            return marked
        return _SPLIT.sub(lambda found: self._tokenizer.decode([self._id.get(found[0], -1)]), marked)


def plain(text: str) -> str:
    """Return a text without marks: half surrogate pairs become U+FFFD."""
    return whole(text)
