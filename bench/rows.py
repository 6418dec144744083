"""Rows: one JSON line per piece of work in bench/results/<question>.jsonl, measured in alternation with a peer."""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
# What every row has; `ratio` is ours over the peer, turned round where less is better: above 1 = ahead.
FIELDS = (
    *("work", "ours", "peer", "unit", "ratio", "samples"),
    *("machine", "commit", "command", "versions", "date"),
)
REPEATS = 5


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every question has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="one tiny repeat to see that it runs; nothing is written")
    parser.add_argument("--write", action="store_true", help="write the rows of a --quick run too")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"of each side, in turn (default {REPEATS})")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the pieces of work whose name holds this")
    return parser


def repeats(options: argparse.Namespace) -> int:
    """Return how often each side is measured."""
    return 1 if options.quick else options.repeats


def alternate(sides: Mapping[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Measure each side in turn, `count` times: a machine whose speed drifts drifts for all of them."""
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(count):
        for name, measure in sides.items():
            samples[name].append(measure())
    return samples


def seconds_of(work: Callable[[], object], calls: int = 1) -> float:
    """Return the mean seconds of a call."""
    from time import perf_counter

    start_s = perf_counter()
    for _ in range(calls):
        work()
    return (perf_counter() - start_s) / calls


def row(
    work: str,
    unit: str,
    ours: Sequence[float],
    peer: Sequence[float] = (),
    *,
    packages: Sequence[str] = ("torch",),
    less_is_better: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Return a row.

    Args:
        work: what was done, in words that another can repeat.
        unit: of the figures.
        ours, peer: samples in the order in which they were taken; no peer: the row has no ratio.
        packages: whose versions matter.
        less_is_better: of the unit, as with seconds.
        more: further fields.
    """
    mine = statistics.median(ours)
    theirs = statistics.median(peer) if peer else None
    ratio = None
    if mine and theirs:  # a share may be zero, and then nothing is so many times the other
        ratio = theirs / mine if less_is_better else mine / theirs
    return {
        "work": work,
        "ours": _rounded(mine),
        "peer": _rounded(theirs),
        "unit": unit,
        "ratio": _rounded(ratio),
        "samples": {"ours": [_rounded(x) for x in ours], "peer": [_rounded(x) for x in peer]},
        **more,
        "machine": _machine(),
        "commit": _commit(),
        "command": shlex.join(["python", f"bench/{Path(sys.argv[0]).name}", *map(_anywhere, sys.argv[1:])]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("leanseek", *packages)}},
        "date": datetime.now(UTC).date().isoformat(),
    }


def publish(question: str, found: Mapping[str, Any], options: argparse.Namespace, target: float | None = None) -> None:
    """Print a row, and put it into the question's file in place of an older one about the same work."""
    ratio = "" if found["ratio"] is None else f": {found['ratio']:.2f} x"
    peer = "" if found["peer"] is None else f", peer {found['peer']:,.6g}{ratio}"
    aim = "" if target is None else f" (to reach: {target:g} x)"
    print(f"{found['work']}: {found['ours']:,.6g} {found['unit']}{peer}{aim}", flush=True)
    if options.quick and not options.write:
        return
    from leanseek.files import write_atomic

    path = RESULTS / f"{question}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = [line for line in lines if line.strip() and json.loads(line)["work"] != found["work"]]
    write_atomic(path, "\n".join([*kept, json.dumps(found, ensure_ascii=False)]) + "\n")


def _rounded(value: float | None) -> float | None:
    """Return a figure with five significant digits."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.5g}")


def _anywhere(word: str) -> str:
    """Return a word of a command without the place that a path has on this machine."""
    return Path(word).name if Path(word).is_absolute() else word


def _machine() -> dict[str, Any]:
    from leanseek.stages import machine

    known = machine("cpu")
    return {name: known[name] for name in ("processor", "cores", "memory_bytes", "device")}


def _commit() -> str:
    """Return the commit, marked where the working tree has other code than it."""
    short = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    changed = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "leanseek", "bench/*.py"]
    name, changes = (subprocess.run(c, capture_output=True, text=True, check=False).stdout for c in (short, changed))
    return (name.strip() or "unknown") + ("+changes" if changes.strip() else "")
