"""logic: who tells the truth, and who stands where; puzzles with one solution each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

from leanseek.envs.environment import Environment, Problem
from leanseek.messages import Message

NAMES = ("Ada", "Ben", "Cleo", "Dov", "Eva", "Finn", "Gia", "Hugo", "Ines", "Jack", "Kira", "Leo")
# Something said: in words, and whether it holds of a world.
Claim = tuple[str, Callable[[Sequence[int]], bool]]


class Logic(Environment):
    """Half are of knights, who always tell the truth, and knaves, who always lie; half of an order in a queue.

    A level is the number of people. The answer names the knights, or the people from first to last, with commas
    between: `Ada, Ben`; `none` where all are knaves. The thinking takes one possibility after the other until one
    holds.
    """

    name = "logic"
    description = "find out who tells the truth, or who stands where"
    levels = (2, 3, 4, 5)

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw people and what is said until one world alone fits."""
        people = rng.sample(NAMES, level)
        make = _knights if rng.random() < 0.5 or level == 2 else _queue
        while True:
            lines, worlds, failed_by, question = make(people, rng)
            fitting = [i for i, failed in enumerate(failed_by) if failed is None]
            if len(fitting) == 1:
                break
        [right] = fitting
        prompt = "\n".join([*lines, question])
        data = {"answer": worlds[right], "worlds": worlds[: right + 1], "failed": failed_by[: right + 1]}
        return Problem(self.name, level, prompt, data, " ".join(sorted(lines)))

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Write each possibility and the first line that it breaks, up to the one that breaks none."""
        tried = zip(problem.data["worlds"], problem.data["failed"], strict=True)
        thinking = [f"{world}: {'fits' if failed is None else f'breaks {failed}'}" for world, failed in tried]
        return Message("assistant", problem.data["answer"], "\n".join(thinking))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the solution, names and commas; spaces and large letters do not count."""
        return ["".join(part.split()).lower() for part in answer.split(",")] == [
            part.strip().lower() for part in problem.data["answer"].split(",")
        ]

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether every possibility up to the right one is judged right, in order."""
        return reasoning == self.solution(problem, random.Random(0)).reasoning_content

    def wrong_answer(self, problem: Problem) -> str:
        """Return a possibility that does not fit."""
        return "none" if problem.data["answer"] != "none" else NAMES[0]


# Lines of a puzzle; its worlds as answers; for each the number of the line that it breaks; the question.
_Puzzle = tuple[list[str], list[str], list[int | None], str]


def _knights(people: Sequence[str], rng: random.Random) -> _Puzzle:
    count = len(people)
    claims = [_claim(people, i, rng) for i in range(count)]
    lines = [
        "Knights always tell the truth, knaves always lie.",
        *(f"{people[i]}: {claims[i][0]}" for i in range(count)),
    ]
    worlds = list(itertools.product((1, 0), repeat=count))
    failed = [next((i + 1 for i in range(count) if claims[i][1](w) != bool(w[i])), None) for w in worlds]
    # Knights are named in the order in which they speak.
    named = [", ".join(name for name, knight in zip(people, w, strict=True) if knight) or "none" for w in worlds]
    return lines, named, failed, "Who are the knights? Name them in the order above, or say none."


def _claim(people: Sequence[str], speaker: int, rng: random.Random) -> Claim:
    other = rng.choice([i for i in range(len(people)) if i != speaker])
    third = rng.choice([i for i in range(len(people)) if i != other])
    name, also = people[other], people[third] if third != speaker else "I"
    least = rng.randint(1, len(people))
    am = "am" if third == speaker else "is"
    return rng.choice(
        (
            (f"{name} is a knight.", lambda w: bool(w[other])),
            (f"{name} is a knave.", lambda w: not w[other]),
            (f"{name} and I are of the same kind.", lambda w: w[other] == w[speaker]),
            (f"{name} is a knight or {also} {am} a knave.", lambda w: bool(w[other] or not w[third])),
            (f"{name} is a knave and {also} {am} a knight.", lambda w: bool(not w[other] and w[third])),
            (f"If {name} is a knight, {also} {am} a knight.", lambda w: bool(not w[other] or w[third])),
            (f"At least {least} of us {'is a knight' if least == 1 else 'are knights'}.", lambda w: sum(w) >= least),
            (f"Exactly {least} of us {'is a knight' if least == 1 else 'are knights'}.", lambda w: sum(w) == least),
        )
    )


def _queue(people: Sequence[str], rng: random.Random) -> _Puzzle:
    count = len(people)
    truth = list(range(count))
    rng.shuffle(truth)  # place of each
    hints: list[Claim] = []
    worlds = list(itertools.permutations(range(count)))
    left = worlds
    while len(left) > 1:
        hint = _hint(people, rng)
        if hint[1](truth) and (fitting := [w for w in left if hint[1](w)]) != left:
            hints.append(hint)
            left = fitting
    lines = [f"{', '.join(people)} stand in a queue.", *(words for words, _ in hints)]
    failed = [next((i + 1 for i, (_, holds) in enumerate(hints) if not holds(w)), None) for w in worlds]
    named = [", ".join(sorted(people, key=lambda name, w=w: w[people.index(name)])) for w in worlds]  # type: ignore[misc]
    return lines, named, failed, "In which order do they stand? Name all, the first one first."


def _hint(people: Sequence[str], rng: random.Random) -> Claim:
    one, other = rng.sample(range(len(people)), 2)
    place, a, b = rng.randrange(len(people)), people[one], people[other]
    return rng.choice(
        (
            (f"{a} stands somewhere before {b}.", lambda w: w[one] < w[other]),
            (f"{a} stands directly behind {b}.", lambda w: w[one] == w[other] + 1),
            (f"{a} and {b} stand side by side.", lambda w: abs(w[one] - w[other]) == 1),
            (f"{a} and {b} do not stand side by side.", lambda w: abs(w[one] - w[other]) != 1),
            (f"{a} is not number {place + 1}.", lambda w: w[one] != place),
            (f"{a} is number {place + 1}.", lambda w: w[one] == place),
        )
    )
