"""Expressions: the exact value of an answer such as 3/4, 0.75, 2x+1 or a LaTeX fraction; any text can be given."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from decimal import Context, Decimal
from fractions import Fraction

# Bounds that no answer of a school book meets, and that keep every value small and every step quick.
MOST_CHARACTERS = 200
DEEPEST = 30
LARGEST_EXPONENT = 64
MOST_BITS = 4096
# Expressions with letters are equal where they agree at so many places, drawn with a fixed seed.
PLACES = 3
# Roots and pi are taken with so many digits; values are equal that agree in all but the last ten.
_CONTEXT = Context(prec=50)
_CLOSE = Decimal("1e-40")
_PI = Decimal("3.1415926535897932384626433832795028841971693993751058209749445923")
_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)|(sqrt|pi|[a-z])|(\*\*|[-+*/^()]))")
_BOXED = re.compile(r"\\boxed\s*\{(.*)\}\s*\.?", re.DOTALL)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ROOT = re.compile(r"\\sqrt\s*\{([^{}]*)\}")
_POWER = re.compile(r"\^\s*\{([^{}]*)\}")
_THOUSANDS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_PLAIN = (
    *((r"\left", ""), (r"\right", ""), (r"\cdot", "*"), (r"\times", "*"), (r"\div", "/"), (r"\pi", "pi")),
    *(("\u2212", "-"), ("\u00d7", "*"), ("\u00b7", "*"), ("\u00f7", "/"), ("\u03c0", "pi"), (r"\,", ""), (r"\ ", "")),
)

Value = Fraction | Decimal


def same(answer: str, gold: str) -> bool:
    """Whether two texts are expressions of the same value, for every value of the letters in them."""
    if answer.strip() == gold.strip():
        return True
    one, other = _tokens(_cleaned(answer)), _tokens(_cleaned(gold))
    if one is None or other is None or not _letters(one) <= _letters(other):
        return False
    letters = sorted(_letters(other))
    rng = random.Random("expressions")
    for _ in range(PLACES if letters else 1):
        at = {letter: Fraction(rng.randint(2, 10**6), rng.randint(2, 10**3)) for letter in letters}
        left, right = _value(one, at), _value(other, at)
        if left is None or right is None or not _equal(left, right):
            return False
    return True


def is_number(text: str) -> bool:
    """Whether a text is a number as such, whole, decimal or a fraction of whole numbers: nothing is left to compute."""
    tokens = [token for token in _tokens(_cleaned(text)) or [] if token not in "()"]
    if tokens and tokens[0] in "+-":
        tokens = tokens[1:]
    if len(tokens) == 3:
        return tokens[1] == "/" and tokens[0].isdigit() and tokens[2].isdigit()
    return len(tokens) == 1 and tokens[0][0] in ".0123456789"


def exact(text: str) -> Fraction | None:
    """Return the rational number that an expression without letters or roots is; None where it is none."""
    tokens = _tokens(_cleaned(text))
    found = None if tokens is None else _value(tokens, {})
    return found if isinstance(found, Fraction) else None


def _cleaned(text: str) -> str:
    """Return an answer without what is written around it and with signs in place of LaTeX's commands."""
    text = text.strip()
    if len(text) > MOST_CHARACTERS:
        return ""
    if boxed := _BOXED.fullmatch(text):
        text = boxed[1].strip()
    if len(text) > 2 and text[0] == text[-1] == "$":
        text = text[1:-1]
    for written, sign in _PLAIN:
        text = text.replace(written, sign)
    for _ in range(DEEPEST):
        before = text
        text = _ROOT.sub(r" sqrt(\1)", _POWER.sub(r"^(\1)", _FRACTION.sub(r"((\1)/(\2))", text)))
        if text == before or len(text) > 4 * MOST_CHARACTERS:
            break
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def _tokens(text: str) -> list[str] | None:
    """Return an expression's parts, a * put where one is meant; None where something else stands in it."""
    found: list[str] = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        token, at = match[match.lastindex or 0], match.end()
        after_value = bool(found) and (found[-1] == ")" or found[-1][0].isalnum() or found[-1][0] == ".")
        if after_value and found[-1] != "sqrt" and (token == "(" or token.isalpha()):
            found.append("*")
        elif after_value and token[0] in "0123456789.":
            return None  # two numbers side by side, or one behind a letter
        found.append("^" if token == "**" else token)
    return found or None


def _letters(tokens: list[str]) -> set[str]:
    return {token for token in tokens if len(token) == 1 and token.isalpha()}


def _equal(one: Value, other: Value) -> bool:
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    left, right = _decimal(one), _decimal(other)
    return abs(_CONTEXT.subtract(left, right)) <= _CLOSE * max(Decimal(1), abs(right))


def _decimal(value: Value) -> Decimal:
    return (
        value if isinstance(value, Decimal) else _CONTEXT.divide(Decimal(value.numerator), Decimal(value.denominator))
    )


def _value(tokens: list[str], letters: Mapping[str, Fraction]) -> Value | None:
    reader = _Reader(tokens, letters)
    try:
        value = reader.sum(0)
    except (ArithmeticError, ValueError):  # too deep, too large, divided by nothing, or no expression
        return None
    return value if reader.at == len(tokens) else None


class _Reader:
    """Reads an expression by descent, no deeper than DEEPEST."""

    def __init__(self, tokens: list[str], letters: Mapping[str, Fraction]) -> None:
        self.tokens, self.letters, self.at = tokens, letters, 0

    def _take(self, accepted: str) -> str:
        """Return the next part if it is one of some signs, else nothing."""
        token = self.tokens[self.at] if self.at < len(self.tokens) else ""
        if len(token) == 1 and token in accepted:
            self.at += 1
            return token
        return ""

    def sum(self, depth: int) -> Value:
        if depth > DEEPEST:
            raise ValueError
        value = self._product(depth)
        while sign := self._take("+-"):
            value = _joined(sign, value, self._product(depth))
        return value

    def _product(self, depth: int) -> Value:
        value = self._signed(depth)
        while sign := self._take("*/"):
            value = _joined(sign, value, self._signed(depth))
        return value

    def _signed(self, depth: int) -> Value:
        if sign := self._take("+-"):
            value = self._power(depth)
            return _joined("-", Fraction(0), value) if sign == "-" else value
        return self._power(depth)

    def _power(self, depth: int) -> Value:
        value = self._single(depth)
        if not self._take("^"):
            return value
        exponent = self._signed(depth + 1) if depth < DEEPEST else None
        if not isinstance(exponent, Fraction) or exponent.denominator != 1 or abs(exponent) > LARGEST_EXPONENT:
            raise ValueError
        return _bounded(value ** int(exponent) if isinstance(value, Fraction) else _CONTEXT.power(value, int(exponent)))

    def _single(self, depth: int) -> Value:
        if self.at >= len(self.tokens):
            raise ValueError
        token = self.tokens[self.at]
        self.at += 1
        if token == "(":
            value = self.sum(depth + 1)
            if not self._take(")"):
                raise ValueError
            return value
        if token == "sqrt":
            if not self._take("("):
                raise ValueError
            value = _decimal(self.sum(depth + 1))
            if not self._take(")"):
                raise ValueError
            return _CONTEXT.sqrt(value)
        if token == "pi":
            return _CONTEXT.plus(_PI)
        if token in self.letters:
            return self.letters[token]
        return Fraction(token)


def _joined(sign: str, left: Value, right: Value) -> Value:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        exact: dict[str, Fraction] = {"+": left + right, "-": left - right, "*": left * right}
        return _bounded(left / right if sign == "/" else exact[sign])
    one, other = _decimal(left), _decimal(right)
    work = {"+": _CONTEXT.add, "-": _CONTEXT.subtract, "*": _CONTEXT.multiply, "/": _CONTEXT.divide}
    return work[sign](one, other)


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction) and max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise ValueError
    return value
