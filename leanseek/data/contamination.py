"""Contamination: whether held-out problems stand in the text that a run was trained on, by overlapping n-grams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Words in a row that count as the same text, as GPT-3's report (arXiv 2005.14165, appendix C) has it; a problem that
# is shorter counts where it stands there whole.
WORDS = 13
# Words by which places are looked up before whole n-grams are compared.
ANCHOR = 3
# Signs around a word that make it no other word.
AROUND = ".,;:!?\"'()"


@dataclass(frozen=True)
class Contamination:
    """What was found.

    Args:
        problems: held-out problems that were looked for.
        found: those of which an n-gram stands in the training text.
        documents: texts that were searched.
        words: longest n-gram.
        examples: the first few that were found.
    """

    problems: int
    found: int
    documents: int
    words: int = WORDS
    examples: tuple[str, ...] = ()


def contamination(held_out: Sequence[str], training: Iterable[str], words: int = WORDS) -> Contamination:
    """Look for held-out problems in training text.

    Args:
        held_out: the problems' own text.
        training: texts, read once.
        words: n-grams of so many words count; of a shorter problem, all its words in a row.
    """
    wanted: dict[tuple[str, ...], set[int]] = {}
    for number, text in enumerate(held_out):
        spoken = _words(text)
        size = min(words, len(spoken))
        for at in range(len(spoken) - size + 1 if size else 0):
            wanted.setdefault(tuple(spoken[at : at + size]), set()).add(number)
    # First words -> the sizes of the n-grams that begin so: most places of a text are told by one look.
    shortest = min((len(gram) for gram in wanted), default=1)
    anchor = min(ANCHOR, shortest)
    sizes: dict[tuple[str, ...], set[int]] = {}
    for gram in wanted:
        sizes.setdefault(gram[:anchor], set()).add(len(gram))
    found: set[int] = set()
    documents = 0
    for text in training:
        documents += 1
        spoken = _words(text)
        for at in range(len(spoken) - shortest + 1):
            for size in sizes.get(tuple(spoken[at : at + anchor]), ()):
                found |= wanted.get(tuple(spoken[at : at + size]), set())
    examples = tuple(held_out[number] for number in sorted(found)[:3])
    return Contamination(len(held_out), len(found), documents, words, examples)


def _words(text: str) -> list[str]:
    """Return what stands between spaces, in lower case, without the punctuation around it.

    "3+6-2" is one word: a longer sum that begins so is another one.
    """
    return [word for part in text.lower().split() if (word := part.strip(AROUND))]
