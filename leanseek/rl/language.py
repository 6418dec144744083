"""Language: which share of a reply's words is written in the script of the language that it shall think in."""

from __future__ import annotations

import re
import unicodedata

from leanseek.errors import ConfigError, nearest
from leanseek.messages import Message

# Scripts by the first words of their characters' Unicode names. Languages of one script are not told apart.
LATIN, HAN = ("LATIN",), ("CJK",)
SCRIPTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "pl", "tr", "vi", "id"), LATIN),
    "zh": HAN,
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "el": ("GREEK",),
    "ar": ("ARABIC",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "th": ("THAI",),
}
# A run of letters and their marks is a word; an unreadable byte is one in no language.
WORD = re.compile(r"(?:[^\W\d_]\w*)|\ufffd")


def consistency(reply: Message, language: str) -> float:
    """Return the share of a reply's words, thinking and answer, that are in a language; 1 without any word.

    Languages of an unspaced script count a run of characters as a word.

    Args:
        reply: of the assistant.
        language: a key of SCRIPTS.
    Raises:
        ConfigError: a language that is not among them.
    Source: DeepSeek-R1 (arXiv 2501.12948) section 2.3.2, which counts words of the target language too.
    """
    scripts = scripts_of(language)
    words = WORD.findall(f"{reply.reasoning_content or ''} {reply.content}")
    if not words:
        return 1.0
    return sum(all(_is_of(character, scripts) for character in word) for word in words) / len(words)


def scripts_of(language: str) -> tuple[str, ...]:
    """Return a language's scripts.

    Raises:
        ConfigError: a language that is not known.
    """
    if language not in SCRIPTS:
        known = ", ".join(sorted(SCRIPTS))
        raise ConfigError(f"grpo.language = {language!r} is not known{nearest(language, SCRIPTS)}; have {known}")
    return SCRIPTS[language]


def _is_of(character: str, scripts: tuple[str, ...]) -> bool:
    if not unicodedata.category(character).startswith("L"):  # digits and marks belong to any
        return character != "\ufffd"
    return unicodedata.name(character, "").startswith(scripts)
