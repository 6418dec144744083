"""Arguments: the JSON text of a tool call's arguments, taken apart without changing a character of its values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from leanseek.errors import UsageError

# Any name that no format's marks can be mistaken in; OpenAI's own are narrower.
_NAME = re.compile(r"[^\s\"<>\\\ud800-\udfff]{1,256}")
_SPACE = re.compile(r"[ \t\r\n]*")


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


# Numbers stay text: Python would refuse very long ones and round others.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse)


def is_name(name: str) -> bool:
    """Whether a tool may have this name."""
    return _NAME.fullmatch(name) is not None


def checked_name(name: str) -> str:
    """Return a tool's name.

    Raises:
        UsageError: it cannot be written in a chat format.
    """
    if not is_name(name):
        raise UsageError(
            f"tool name {name[:80]!r}: a name has 1 to 256 characters and no whitespace, quotes, angle brackets or \\"
        )
    return name


def quote(text: str) -> str:
    """Return a text as a JSON string with no more escapes than it needs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(text)  # half a surrogate pair can only be written as an escape
    return json.dumps(text, ensure_ascii=False)


def dumps(value: Any) -> str:
    """Return a value as JSON, as Hugging Face's templates write it.

    Raises:
        UsageError: it is no JSON value.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"a tool's parameters must be JSON values ({error})") from None


def value_of(text: str) -> Any:
    """Return a JSON text's value, numbers as their text.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        start = _skip(text, 0)
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _skip(text, end) != len(text):
        raise ValueError("text behind the value")
    return value


def is_json(text: str) -> bool:
    """Whether a text is JSON."""
    try:
        value_of(text)
    except ValueError:
        return False
    return True


def items(text: str) -> list[tuple[str, str]] | None:
    """Return an object's keys and the text of their values, in order; None for any other text.

    Of two values with one key the last counts, as everywhere in JSON.
    """
    found: dict[str, str] = {}
    try:
        at = _skip(text, _past(text, _skip(text, 0), "{"))
        while text[at : at + 1] != "}":
            if found:
                at = _skip(text, _past(text, at, ","))
            if text[at : at + 1] != '"':
                return None
            key, at = _DECODER.raw_decode(text, at)
            start = _skip(text, _past(text, _skip(text, at), ":"))
            _, at = _DECODER.raw_decode(text, start)
            found[key] = text[start:at]
            at = _skip(text, at)
        at += 1
    except (ValueError, RecursionError):
        return None
    return list(found.items()) if _skip(text, at) == len(text) else None


def joined(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the object of some keys and their values' texts."""
    return "{" + ", ".join(f"{quote(key)}: {value}" for key, value in pairs) + "}"


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _past(text: str, at: int, sign: str) -> int:
    if text[at : at + 1] != sign:
        raise ValueError(f"{sign} is lacking")
    return at + 1
