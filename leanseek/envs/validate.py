"""Validate: whether a task keeps what the interface promises, so that it can be trained and judged on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice

from leanseek.envs.environment import ANSWER_CHARACTERS, Environment, Problem, Split, demonstrate, play
from leanseek.messages import Message, ToolCall

SPLITS: tuple[Split, ...] = ("train", "development", "test")
# Of so many problems drawn without choosing, at least this share must be distinct.
DISTINCT_SHARE = 0.5


def validate(environment: Environment, problems: int = 200) -> list[str]:
    """Try a task out; return what is wrong with it, each in a sentence; [] if nothing is.

    Args:
        environment: the task.
        problems: how many of each split are drawn.
    """
    drawn = {split: list(islice(environment.problems(split, 0), problems)) for split in SPLITS}
    failures = [*_splits(environment, drawn), *_seeds(environment, drawn["train"])]
    rng = random.Random(0)
    for number, problem in enumerate(drawn["train"] + drawn["test"]):
        found = list(_one(environment, problem, rng, attack=number % 10 == 0))
        failures += [f"{text} (problem {problem.key!r} of level {problem.level})" for text in found]
        if len(failures) >= 10:  # the rest would say the same
            break
    return failures


def hostile(gold: str, *, exact: bool = True) -> list[str]:
    """Return answers that nobody should get a point for, and that no checker may stumble over.

    Args:
        gold: a right answer.
        exact: whether it is wrong with anything added to it.
    """
    added = [gold + " or so", gold + "\n" + gold, gold + "=", gold + ",", f"{gold} {gold}", "the answer is " + gold]
    return [
        "",
        " ",
        "\x00",
        "nan",
        "-1e999",
        "9**9**9",
        "9" * ANSWER_CHARACTERS,
        "9" * 100_000,
        "(" * (ANSWER_CHARACTERS // 2) + "7" + ")" * (ANSWER_CHARACTERS // 2),
        "(" * ANSWER_CHARACTERS,
        "1/0",
        "--1",
        "٣٤",  # digits, but not the ones that models write
        "½",
        "__import__('os').getcwd()",
        "<think>",
        "\n" * 50,
        "\ud800",  # half a character
        "\u202e12",  # reads from right to left
        "\x1b[2J",
        *(added if exact else ()),
    ]


def _splits(environment: Environment, drawn: Mapping[Split, Sequence[Problem]]) -> Iterator[str]:
    """Splits that share nothing and do not run out."""
    for one, other in combinations(SPLITS, 2):
        if shared := {problem.key for problem in drawn[one]} & {problem.key for problem in drawn[other]}:
            yield f"{one} and {other} share {len(shared)} problems, such as {sorted(shared)[0]!r}"
        if shared := {problem.prompt for problem in drawn[one]} & {problem.prompt for problem in drawn[other]}:
            first = sorted(shared)[0]
            yield f"{one} and {other} share {len(shared)} prompts, such as {first!r}: the key must follow from it"
    for split in SPLITS:
        distinct = len({problem.key for problem in drawn[split]})
        if distinct < DISTINCT_SHARE * len(drawn[split]):
            yield f"only {distinct} of {len(drawn[split])} problems of {split} are distinct"
        strange = [p for p in drawn[split] if p.environment != environment.name or p.level not in environment.levels]
        if strange:
            yield f"a problem says it is of {strange[0].environment!r} at level {strange[0].level}"


def _seeds(environment: Environment, train: Sequence[Problem]) -> Iterator[str]:
    """The same seed gives the same problems, another seed others."""
    again = list(islice(environment.problems("train", 0), len(train)))
    if [(p.key, p.prompt, p.data) for p in again] != [(p.key, p.prompt, p.data) for p in train]:
        yield "the same seed gives other problems the second time"
    other = list(islice(environment.problems("train", 1), len(train)))
    if [p.key for p in other] == [p.key for p in train]:
        yield "seeds 0 and 1 give the same problems"


def _conversation(environment: Environment, problem: Problem, rng: random.Random, attack: bool) -> Iterator[str]:
    """What is wrong with one problem of several replies: its expert, and what it makes of replies that are no use."""
    said, turn = demonstrate(environment, problem, rng)
    rewards = turn.rewards.get("correct"), turn.rewards.get("format")
    if not turn.done or rewards != (1.0, 1.0):
        yield f"the expert's last reply {said[-1].content[:60]!r} leaves the rewards at {dict(turn.rewards)}"
    if not attack:
        return
    for reply in hostile_replies():
        episode = environment.start(problem)
        try:
            said, turn = play(episode, lambda reply=reply: reply, 8)  # type: ignore[misc]
            if turn.rewards.get("correct", 0.0) != 0.0:
                yield f"the reply {str(reply)[:80]} scores"
        except Exception as error:  # as in _hostile
            yield f"the reply {str(reply)[:80]} makes the episode fail: {type(error).__name__}: {error}"


def hostile_replies() -> list[Message]:
    """Return replies, tool calls among them, that nobody should get a point for and no episode may stumble over."""
    nested = json.dumps({"name": "calculator", "arguments": {"name": "python", "arguments": {}}})
    arguments = ["", "{", "null", "[]", '"x"', nested, "[" * 5000, "\x00", "{}", '{"x": "' + "9" * 100_000 + '"}']
    names = ["", "nobody", "calculator", "python", "\x00", "<｜tool▁call▁begin｜>"]
    calls = [ToolCall("call_0", name, text) for name, text in zip(names * 2, arguments, strict=False)]
    return [
        *(
            Message("assistant", text, "so")
            for text in ("", "\x00", "9" * 100_000, "\ud800", "<think>", "<tool_call>" * 50)
        ),
        *(Message("assistant", "", "so", (call,)) for call in calls),
        Message("assistant", "", "so", tuple(calls) * 50),
        Message("assistant", "", None, (calls[5],)),
    ]


def _one(environment: Environment, problem: Problem, rng: random.Random, attack: bool) -> Iterator[str]:
    """What is wrong with one problem: its checker, its worked solution, its audit."""
    if environment.multi_turn:
        yield from _conversation(environment, problem, rng, attack)
        return
    solution = environment.solution(problem, rng)
    if _rewards(environment, problem, solution) != (1.0, 1.0):
        yield f"the worked solution {solution.content!r} does not score 1"
    sound = environment.audit(problem, solution.reasoning_content or "")
    if sound is False:
        yield f"the audit refuses the worked solution {solution.reasoning_content!r}"
    if sound is not None:
        yield from _broken(environment, problem, solution.reasoning_content or "", rng)
    gold = solution.content
    if solution.reasoning_content is not None and _correct(environment, problem, Message("assistant", gold)) != 0.0:
        yield "an answer without thinking scores"
    wrong = environment.wrong_answer(problem)
    if _rewards(environment, problem, Message("assistant", wrong, "so")) != (0.0, 1.0):
        yield f"wrong_answer() gives {wrong!r}, which scores or is not well formed"
    if attack:
        yield from _hostile(environment, problem, gold)


def _broken(environment: Environment, problem: Problem, reasoning: str, rng: random.Random) -> Iterator[str]:
    """Thinking with one digit changed, a line left out, or a line too many must not pass the audit."""
    lines = reasoning.split("\n")
    digits = [i for i, character in enumerate(reasoning) if character.isdigit()]
    broken = ["", reasoning + "\n", "\n" + reasoning, reasoning + " ", "\n".join([*lines, lines[-1]])]
    if digits:
        at = rng.choice(digits)
        broken.append(f"{reasoning[:at]}{(int(reasoning[at]) + 1) % 10}{reasoning[at + 1 :]}")
    broken.append("\n".join(lines[:-1]))
    for text in broken:
        if environment.audit(problem, text):
            yield f"the audit lets {text!r} pass, a broken form of {reasoning!r}"


def _hostile(environment: Environment, problem: Problem, gold: str) -> Iterator[str]:
    for answer in hostile(gold, exact=environment.exact):
        try:
            if _correct(environment, problem, Message("assistant", answer, "so")) != 0.0:
                yield f"the answer {answer[:60]!r} scores"
            environment.audit(problem, answer)
        except Exception as error:  # what is looked for here is a checker that falls over, in any way
            yield f"{answer[:60]!r} makes the checker or the audit fail: {type(error).__name__}: {error}"


def _rewards(environment: Environment, problem: Problem, reply: Message) -> tuple[float, float]:
    rewards = environment.start(problem).step(reply).rewards
    return rewards.get("correct", 0.0), rewards.get("format", 0.0)


def _correct(environment: Environment, problem: Problem, reply: Message) -> float:
    return _rewards(environment, problem, reply)[0]
