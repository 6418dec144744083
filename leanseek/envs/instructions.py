"""instructions: write a text that keeps several checkable rules at once: counts, words, form, language."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from leanseek.envs.environment import Environment, Problem
from leanseek.messages import Message

TOPICS = ("rain", "bread", "trains", "winter", "a garden", "the sea", "music", "a market", "mountains", "an old house")
# Language -> words that are common in it and in none of the others: at least a quarter of a text must be such words.
LANGUAGES = {
    "English": ("the", "and", "of", "is", "with", "that", "for", "it", "this", "from"),
    "German": ("der", "und", "ist", "nicht", "mit", "das", "ein", "auf", "wir", "auch"),
    "French": ("le", "et", "est", "dans", "une", "pas", "pour", "nous", "avec", "ce"),
    "Spanish": ("el", "y", "es", "con", "una", "por", "pero", "los", "muy", "para"),
}
KEYWORDS = (
    "lantern",
    "river",
    "copper",
    "window",
    "orbit",
    "velvet",
    "harbour",
    "pepper",
    "signal",
    "meadow",
    "ticket",
)
ENDINGS = ("that is all", "until tomorrow", "so it goes", "and nothing more", "see you there")
FILLERS = ("small", "green", "slow", "warm", "bright", "open", "quiet", "round", "early", "plain")
_WORD = re.compile(r"[^\W\d_]+")


@dataclass
class Text:
    """A text being made so that it keeps the rules: rules change it in their order."""

    language: str = "English"
    sentences: int = 3
    words: int = 0  # of each sentence; 0: as it comes
    needed: list[str] = field(default_factory=list)
    forbidden: str = ""
    first: str = ""
    last: str = ""
    form: str = "prose"
    case: str = ""
    wrapped: str = ""


# A rule: how it is asked for, whether a text keeps it, and what it wants of a text that is made.
Rule = tuple[str, Callable[[str], bool], Callable[[Text], None]]


class Instructions(Environment):
    """A level is the number of rules, beside the language and a length: how many sentences, or lines of a list.

    The rules of a problem never contradict each other. `correct` is 1 where all are kept; the share of rules that are
    kept is not rewarded.
    """

    name = "instructions"
    description = "write a text that keeps several checkable rules at once"
    levels = (1, 2, 3, 4)
    longest_answer = 2000
    exact = False  # where no rule is about it, more may stand in a text

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw rules, and a text that keeps them."""
        seed = rng.getrandbits(40)
        topic, rules = _rules(level, random.Random(seed))
        prompt = "\n".join([f"Write about {topic}. Keep to all of this:", *(f"- {rule[0]}" for rule in rules)])
        data = {"seed": seed, "rules": tuple(rule[0] for rule in rules)}
        return Problem(self.name, level, prompt, data, prompt)

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Return a text made for the rules; the thinking goes through them."""
        _, rules = _rules(problem.level, random.Random(problem.data["seed"]))
        text = Text()
        for rule in rules:
            rule[2](text)
        return Message("assistant", _written(text, rng), "\n".join(problem.data["rules"]))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether every rule is kept."""
        _, rules = _rules(problem.level, random.Random(problem.data["seed"]))
        return all(rule[1](answer) for rule in rules)

    def wrong_answer(self, problem: Problem) -> str:
        """Return a text of one word in no language."""
        return "hmm"


def _rules(level: int, rng: random.Random) -> tuple[str, list[Rule]]:
    """Return a topic and rules: language and length, then `level` more of different kinds."""
    topic = rng.choice(TOPICS)
    language = rng.choice(list(LANGUAGES))
    form, count = rng.choice(("prose", "list")), rng.randint(2, 6)
    rules = [_language(language), _sentences(count) if form == "prose" else _list(count)]
    # In this order rules can build on each other: what a text is wrapped in comes last.
    kinds: list[Callable[[random.Random], Rule]] = [_keyword, _without, _start, _end, _case, _wrap, _length]
    chosen = sorted(rng.sample(range(len(kinds)), level))
    return topic, rules + [kinds[i](rng) for i in chosen]


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _core(text: str) -> str:
    """Return a text without what it is wrapped in."""
    text = text.strip()
    for left, right in (("<<", ">>"), ("[", "]"), ('"', '"')):
        if text.startswith(left) and text.endswith(right) and len(text) > len(left + right):
            return text[len(left) : -len(right)].strip()
    return text


def _language(name: str) -> Rule:
    common = set(LANGUAGES[name])

    def kept(text: str) -> bool:
        words = _words(text)
        own = sum(word in common for word in words)
        others = sum(word in LANGUAGES[other] for other in LANGUAGES if other != name for word in words)
        return len(words) >= 4 and own >= len(words) / 4 and own > others

    def want(text: Text) -> None:
        text.language = name

    return (
        f"Write in {name}, using at least a quarter of common words of it, such as {', '.join(LANGUAGES[name])}.",
        kept,
        want,
    )


def _sentences(count: int) -> Rule:
    def want(text: Text) -> None:
        text.sentences = count

    def kept(text: str) -> bool:
        core = _core(text)
        return len(re.findall(r"[.!?](?:\s|$)", core)) == count and core[-1:] in tuple(".!?") and "\n" not in core

    return f"Write exactly {count} sentences on one line, each ended by a full stop, ! or ?.", kept, want


def _list(count: int) -> Rule:
    def want(text: Text) -> None:
        text.sentences, text.form = count, "list"

    def kept(text: str) -> bool:
        lines = [line for line in _core(text).split("\n") if line.strip()]
        return len(lines) == count and all(line.startswith("- ") and _words(line) for line in lines)

    return f"Write a list of exactly {count} lines and nothing else, each beginning with '- '.", kept, want


def _keyword(rng: random.Random) -> Rule:
    word, count = rng.choice(KEYWORDS), rng.randint(1, 3)

    def want(text: Text) -> None:
        text.needed += [word] * count

    times = "once" if count == 1 else f"{count} times"
    return f"Use the word {word} exactly {times}.", lambda text: _words(text).count(word) == count, want


def _without(rng: random.Random) -> Rule:
    word, sign = rng.choice(FILLERS), rng.choice(",;:?!")

    def want(text: Text) -> None:
        text.forbidden = word

    def kept(text: str) -> bool:
        return sign not in text and word not in _words(text)

    return f"Use neither the word {word} nor the sign {sign}", kept, want


def _start(rng: random.Random) -> Rule:
    first = rng.choice(("Listen", "Today", "Somewhere", "Look", "Once"))

    def want(text: Text) -> None:
        text.first = first

    def kept(text: str) -> bool:
        return _words(text)[:1] == [first.lower()]

    return f"Let the first word be {first}.", kept, want


def _end(rng: random.Random) -> Rule:
    last = rng.choice(ENDINGS)

    def want(text: Text) -> None:
        text.last = last

    def kept(text: str) -> bool:
        return _words(text)[-len(last.split()) :] == last.split()

    return f"Let the last words be: {last}.", kept, want


def _case(rng: random.Random) -> Rule:
    case = rng.choice(("capital", "small"))

    def want(text: Text) -> None:
        text.case = case

    def kept(text: str) -> bool:
        return text == (text.upper() if case == "capital" else text.lower()) and bool(_words(text))

    return f"Use {case} letters only.", kept, want


def _wrap(rng: random.Random) -> Rule:
    left, right, name = rng.choice(
        (("<<", ">>", "<< and >>"), ("[", "]", "[ and ]"), ('"', '"', "double quotation marks"))
    )

    def want(text: Text) -> None:
        text.wrapped = left + "|" + right

    def kept(text: str) -> bool:
        return text.startswith(left) and text.endswith(right) and len(_words(text)) > 0

    return f"Put the whole text between {name}.", kept, want


def _length(rng: random.Random) -> Rule:
    least = rng.randint(30, 60)
    most = least + rng.randint(3, 10)

    def want(text: Text) -> None:
        text.words = least

    return f"Use {least} to {most} words.", lambda text: least <= len(_words(text)) <= most, want


def _written(text: Text, rng: random.Random) -> str:
    """Return a text that keeps the rules: common words, and what is needed put among them."""
    common, own = LANGUAGES[text.language], [text.first] if text.first else []
    last, fillers = text.last.split(), [word for word in FILLERS if word != text.forbidden]
    total = text.words or max(7 * text.sentences, len(own) + len(last) + 2 * len(text.needed) + 8)
    middle = [*text.needed]
    room = total - len(own) - len(last) - len(middle)
    for i in range(room):
        middle.append(rng.choice(common) if i % 2 == 0 else rng.choice(fillers))
    rng.shuffle(middle)
    words = [*own, *middle, *last]
    cuts = [len(words) * i // text.sentences for i in range(text.sentences + 1)]
    parts = [" ".join(words[a:b]) for a, b in itertools.pairwise(cuts)]
    made = "\n".join(f"- {part}" for part in parts) if text.form == "list" else " ".join(f"{part}." for part in parts)
    if text.wrapped:
        left, _, right = text.wrapped.partition("|")
        made = f"{left}{made}{right}"
    return {"capital": made.upper(), "small": made.lower()}.get(text.case, made)
