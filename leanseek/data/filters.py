"""Filters: what about a document says that it is not worth learning from; each by name, so that it can be counted."""

from __future__ import annotations

import itertools
import re
from collections import Counter

# The bounds are Gopher's (Rae et al. 2021, arXiv 2112.11446, table A1), but for the shortest document: 50 words there.
LEAST_WORDS, MOST_WORDS = 20, 100_000
MEAN_WORD = (3.0, 10.0)
MOST_SYMBOLS = 0.1  # "#" and "..." to a word
MOST_BULLETS = 0.9  # of all lines
MOST_ELLIPSES = 0.3  # lines that end so
LEAST_LETTERS = 0.8  # of the words, with a letter in them
MOST_REPEATED_LINES = 0.3
MOST_REPEATED_CHARACTERS = 0.2  # of the commonest run of two words
# Scripts without spaces: their documents have few "words", which the rules above would throw away.
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0eff]")


def fault_of(text: str) -> str | None:
    """Return why a document should be left out, in a word or two; None: it should not.

    Text in scripts that set no spaces is judged by its lines alone.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "blank"
    if len(lines) > 4 and sum(n - 1 for n in Counter(lines).values()) > MOST_REPEATED_LINES * len(lines):
        return "repeated lines"
    if text.count("\ufffd") > len(text) / 1000:
        return "broken characters"
    if len(UNSPACED.findall(text[:10_000])) > 0.2 * len(text[:10_000]):
        return None
    words = text.split()
    count = len(words)
    if count < LEAST_WORDS:
        return "too short"
    if count > MOST_WORDS:
        return "too long"
    if not MEAN_WORD[0] <= sum(map(len, words)) / count <= MEAN_WORD[1]:
        return "length of words"
    if text.count("#") + text.count("...") + text.count("…") > MOST_SYMBOLS * count:
        return "symbols"
    if sum(line.startswith(("-", "*", "•")) for line in lines) > MOST_BULLETS * len(lines):
        return "bullets"
    if sum(line.endswith(("...", "…")) for line in lines) > MOST_ELLIPSES * len(lines):
        return "ellipses"
    if sum(any(map(str.isalpha, word)) for word in words) < LEAST_LETTERS * count:
        return "few letters"
    pair, times = Counter(itertools.pairwise(words)).most_common(1)[0]
    if times > 2 and times * len(" ".join(pair)) > MOST_REPEATED_CHARACTERS * len(text):
        return "repeated words"
    return None
