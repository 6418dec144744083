"""structured_output: say what a text says as JSON of a given schema."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from leanseek.envs.environment import Environment, Problem
from leanseek.messages import Message

NAMES = ("Ada", "Ben", "Cleo", "Dov", "Eva", "Finn", "Gia", "Hugo", "Ines", "Jack", "Kira", "Leo")
TOWNS = ("Rome", "Lima", "Oslo", "Kyoto", "Quito", "Porto", "Graz", "Cork", "Pune", "Accra")
THINGS = ("chess", "tea", "rowing", "maps", "jazz", "snow", "bread", "poems", "bikes", "cats")
GOODS = ("pens", "cups", "lamps", "books", "plates", "ropes", "boxes", "keys")


class StructuredOutput(Environment):
    """Levels: 1 a flat object, 2 with a list and a choice, 3 a list of objects, with totals to be worked out.

    The answer is JSON alone, or in a code fence; it must have the keys of the schema and no others, of its types, with
    the contents of the text. The order of keys and white space do not count.
    """

    name = "structured_output"
    description = "say what a text says as JSON of a given schema"
    levels = (1, 2, 3)
    longest_answer = 2000

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw a text, its schema and the value."""
        make: Callable[[random.Random], tuple[str, dict[str, Any], Any]] = {1: _person, 2: _member, 3: _order}[level]
        text, schema, value = make(rng)
        prompt = f"{text}\nSay this as JSON of the schema {json.dumps(schema)}."
        return Problem(self.name, level, prompt, {"value": value, "answer": json.dumps(value)}, text)

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Return the value, each of its parts a line of thinking."""
        lines = [f"{key}: {json.dumps(part)}" for key, part in problem.data["value"].items()]
        return Message("assistant", problem.data["answer"], "\n".join(lines))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is JSON of the right value, types and all."""
        if answer.startswith("```") and answer.endswith("```") and len(answer) > 6:
            answer = answer[3:-3].removeprefix("json")
        try:
            value = json.loads(answer, object_pairs_hook=_once)
            return _spelt(value) == _spelt(problem.data["value"])
        except (ValueError, RecursionError):
            return False

    def wrong_answer(self, problem: Problem) -> str:
        """Return the value with a part too many."""
        return json.dumps({**problem.data["value"], "more": 1})


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object.

    Raises:
        ValueError: a key comes twice.
    """
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError
    return made


def _spelt(value: Any) -> str:
    """Return JSON in one spelling; 1, 1.0, true and "1" differ."""
    return json.dumps(value, sort_keys=True)


def _schema(**parts: Any) -> dict[str, Any]:
    return {"type": "object", "properties": parts, "required": list(parts), "additionalProperties": False}


_TEXT, _WHOLE = {"type": "string"}, {"type": "integer"}


def _person(rng: random.Random) -> tuple[str, dict[str, Any], Any]:
    name, town, age = rng.choice(NAMES), rng.choice(TOWNS), rng.randint(18, 90)
    house = rng.randint(1, 99)
    text = rng.choice(("{n}, {a}, lives in {t}, at number {h}.", "In {t}, at number {h}, lives {n}, who is {a}."))
    value = {"name": name, "age": age, "town": town, "house": house}
    schema = _schema(name=_TEXT, age=_WHOLE, town=_TEXT, house=_WHOLE)
    return text.format(n=name, a=age, t=town, h=house), schema, value


def _member(rng: random.Random) -> tuple[str, dict[str, Any], Any]:
    name, likes = rng.choice(NAMES), rng.sample(THINGS, rng.randint(1, 3))
    since, kind, paid = rng.randint(1980, 2024), rng.choice(("guest", "member", "founder")), rng.random() < 0.5
    what = " and ".join([", ".join(likes[:-1]), likes[-1]]) if len(likes) > 1 else likes[0]
    text = f"{name} has been a {kind} since {since}, likes {what}, and has {'' if paid else 'not '}paid."
    kinds = {"type": "string", "enum": ["guest", "member", "founder"]}
    schema = _schema(
        name=_TEXT, kind=kinds, since=_WHOLE, likes={"type": "array", "items": _TEXT}, paid={"type": "boolean"}
    )
    return text, schema, {"name": name, "kind": kind, "since": since, "likes": likes, "paid": paid}


def _order(rng: random.Random) -> tuple[str, dict[str, Any], Any]:
    name, goods = rng.choice(NAMES), rng.sample(GOODS, rng.randint(2, 4))
    bought = [(what, rng.randint(2, 20), rng.randint(1, 30)) for what in goods]
    items = [{"what": what, "count": count, "price": price} for what, count, price in bought]
    parts = [f"{count} {what} for {price} each" for what, count, price in bought]
    total = sum(count * price for _, count, price in bought)
    item = _schema(what=_TEXT, count=_WHOLE, price=_WHOLE)
    schema = _schema(customer=_TEXT, items={"type": "array", "items": item}, total=_WHOLE)
    return f"{name} orders {', '.join(parts)}.", schema, {"customer": name, "items": items, "total": total}
