"""Affinity: which replica a request belongs to, so that a conversation finds the cache that knows it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

# Of a text completion: how much of the prompt says what it is about.
PROMPT_CHARACTERS = 1024
# Nothing about the request says where it belongs.
ANYWHERE = ""


def key_of(body: bytes) -> str:
    """Return what all requests of one conversation have in common, as a short text; `ANYWHERE` if there is nothing.

    That is whose it is and how it begins: what the system says, and the first thing that somebody says, in any of the
    protocols. Later turns only add to it.

    Args:
        body: as sent; need be no JSON.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return ANYWHERE
    if not isinstance(asked, dict):
        return ANYWHERE
    begins = _beginning(asked)
    if begins is None:
        return ANYWHERE
    metadata = asked.get("metadata")
    whose = asked.get("user_id") or asked.get("user") or (metadata.get("user_id") if isinstance(metadata, dict) else "")
    text = json.dumps([whose, begins, asked.get("tools")], sort_keys=True)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:32]


def ranked(key: str, replicas: Sequence[str]) -> list[str]:
    """Return replicas' names, the one that a key belongs to first.

    Each replica draws a number from the key and its own name, and the largest wins: everybody who knows the names comes
    to the same order, without talking, and a replica that comes or goes moves its own share of the keys alone.

    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998), rendezvous hashing.
    """
    return sorted(replicas, key=lambda name: hashlib.sha256(f"{key} {name}".encode()).digest(), reverse=True)


def _beginning(asked: dict[str, Any]) -> Any:
    """Return what a conversation begins with, up to the first thing that is not the system's."""
    said = asked.get("messages", asked.get("input"))
    if isinstance(said, list) and said:
        count = next((i for i, one in enumerate(said) if not _of_system(one)), len(said) - 1)
        return [asked.get("system"), asked.get("instructions"), said[: count + 1]]
    if isinstance(said, str):
        return [asked.get("instructions"), said]
    prompt = asked.get("prompt")
    if isinstance(prompt, str | list) and prompt:
        return prompt[:PROMPT_CHARACTERS]
    return None


def _of_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", "developer")
