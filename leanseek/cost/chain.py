"""Chain: lines of a file, each sealed with a hash over itself and all before it, so that later changes are found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanseek.files import append_line, sync_folder
from leanseek.log import values_without_nan

SEAL = "hash"
START = ""


@dataclass
class Sealed:
    """What a chained file holds.

    Args:
        rows: every whole line, oldest first, without its seal.
        seals: of each row: its hash; "" for rows from before there were seals.
        torn: numbers of lines that a crash cut off, from 1.
        broken: numbers of lines whose seal does not fit: the line, or one before it, was changed, added or removed.
        head: the last line's hash; whoever keeps it elsewhere can tell later whether lines at the end are missing.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    seals: list[str] = field(default_factory=list)
    torn: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    head: str = START


def seal(before: str, row: Mapping[str, Any]) -> str:
    """Return the hash of a row that follows a line with the hash `before`."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()


def read_chain(path: str | Path) -> Sealed:
    """Read a chained file and check every seal; one that does not exist is empty.

    Rows without a seal (of older versions) count as read, and the first sealed row after them seals them too. A
    torn line is no part of the chain: the line after it goes on from the last whole one.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return Sealed()
    found = Sealed()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            found.torn.append(number)
            continue
        stated = row.pop(SEAL, None)
        true = seal(found.head, row)
        # A row without a seal among sealed ones was put there by hand.
        if (stated is None and any(found.seals)) or (stated is not None and stated != true):
            found.broken.append(number)
        found.rows.append(row)
        found.seals.append(str(stated) if stated is not None else "")
        # Going on from what stands there tells a single changed line from all that follow it.
        found.head = str(stated) if stated is not None else true
    return found


def append_sealed(path: str | Path, row: Mapping[str, Any]) -> str:
    """Append a row with its seal and wait until it is on the disk; return the seal."""
    clean = values_without_nan(dict(row))
    # As it will be read back: tuples are lists then, keys are texts.
    clean = json.loads(json.dumps(clean, ensure_ascii=False))
    stamp = seal(read_chain(path).head, clean)
    append_line(path, json.dumps({**clean, SEAL: stamp}, ensure_ascii=False))
    sync_folder(path)
    return stamp
