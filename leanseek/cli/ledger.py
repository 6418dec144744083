"""leanseek ledger: what runs have cost, stage by stage, checked against tampering, side by side, or as CSV and JSON."""

from __future__ import annotations

import csv as csv_format
import json as json_format
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanseek.cli.columns import columns
from leanseek.cost.carbon import Grid, format_grams, parse_grid
from leanseek.cost.chain import Sealed, read_chain
from leanseek.cost.energy import describe_meter
from leanseek.cost.ledger import ALL_STAGES, BY_PART, SECONDS_BY_PART, sum_rows
from leanseek.errors import RunError, UsageError, nearest
from leanseek.log import say
from leanseek.run import Run
from leanseek.units import (
    format_bytes,
    format_count,
    format_flops,
    format_joules,
    format_percent,
    format_seconds,
    format_usd,
)

FILE = "ledger.jsonl"
NOTHING = "-"
HEAD = ("stage", "time", "tokens", "FLOPs", "energy", "J a token", "carbon", "money", "peak memory")
KINDS = {"forward_flops": "forward", "backward_flops": "backward", "recompute_flops": "recomputed"}


def ledger(
    *runs: str,
    compare: bool = False,
    csv: bool = False,
    json: bool = False,
    grid: str | None = None,
    expect: str | None = None,
) -> None:
    """Show what runs have cost, stage by stage, and whether their ledgers are as they were written.

    Every line of a ledger is sealed with a hash over itself and all lines before it: a line that was changed, put in
    or taken out is found, and the command fails. Lines that are missing at the end show only in the last hash, which
    is printed: keep it elsewhere, and give it back with --expect.

    Example: leanseek ledger runs/laptop --grid france

    Args:
        runs: Run folders, or ledger.jsonl files.
        compare: One table for all runs: each stage of each, and its ratio to the first run's.
        csv: Print every line of the ledgers as CSV.
        json: Print rows, sums and checks as JSON.
        grid: Whose electricity it was: a name such as france, or grams of CO2 for a kilowatt-hour.
        expect: The last hash that the (one) ledger must have.
    """
    if not runs:
        raise UsageError("no run is given; name run folders, as in: leanseek ledger runs/laptop")
    if (csv and json) or (compare and (csv or json)):
        raise UsageError("--compare, --csv and --json exclude one another; give one of them")
    if expect is not None and len(runs) != 1:
        raise UsageError(f"--expect is the hash of one ledger, but {len(runs)} are given; name one run")
    whose = parse_grid(grid) if grid is not None else None
    found = {name: _with_carbon(read_chain(_file(name)), whose) for name in runs}
    if json:
        print(
            json_format.dumps(
                {name: _as_dict(one) | {"planned": _plan(name)} for name, one in found.items()},
                indent=2,
                ensure_ascii=False,
            )
        )
    elif csv:
        _print_csv(found)
    elif compare:
        print(_compared(found))
    else:
        print("\n\n".join(_table(name, one, whose) for name, one in found.items()))
    _judge(found, expect)


def _file(name: str) -> Path:
    path = Path(name)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        known = [str(child) for child in Path("runs").glob("*") if Run.is_run(child)]
        raise RunError(f"{name}: there is no ledger{nearest(name, known)}; give a run folder, or a {FILE}")
    return path


def _with_carbon(found: Sealed, grid: Grid | None) -> Sealed:
    if grid is None:
        return found
    rows = [
        {**row, "carbon_g": grid.grams(row["joules"]), "grid": grid.name} if row.get("joules") is not None else row
        for row in found.rows
    ]
    return replace(found, rows=rows)


def _as_dict(found: Sealed) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "sums": sum_rows(found.rows),
        "sealed": sum(bool(seal) for seal in found.seals),
        "torn_lines": found.torn,
        "broken_lines": found.broken,
        "head": found.head,
    }


def _print_csv(found: Mapping[str, Sealed]) -> None:
    rows = [{"run": name, **row} for name, one in found.items() for row in one.rows]
    names = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv_format.DictWriter(sys.stdout, names or ["run"], restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: json_format.dumps(v) if isinstance(v, dict) else v for key, v in row.items()})


def _table(name: str, found: Sealed, grid: Grid | None) -> str:
    sums = sum_rows(found.rows)
    total = sums.pop(ALL_STAGES)
    rows = [(stage, *_cells(values)) for stage, values in sums.items()] + [("all", *_cells(total))]
    lines = [name, columns([HEAD, *rows], right=range(1, len(HEAD))), ""]
    if meter := total["meter"]:
        lines.append(f"energy: {describe_meter(meter)}")
    if grid is not None:
        lines.append(f"carbon: {grid.grams_per_kwh:g} g for a kilowatt-hour ({grid.name}: {grid.source})")
    shares = {title: total.get(key) for key, title in KINDS.items()} | (total.get(BY_PART) or {})
    told = [f"{title} {format_percent(flops / total['flops'])}" for title, flops in shares.items() if flops]
    if told and total["flops"]:
        lines.append(f"FLOPs: {', '.join(told)}")
    if total.get("storage_read_bytes") is not None:
        read, written = total["storage_read_bytes"], total["storage_written_bytes"]
        lines.append(f"disks: {format_bytes(read)} read, {format_bytes(written)} written")
    lines += _against_plan(name, {**sums, ALL_STAGES: total})
    sealed = sum(bool(seal) for seal in found.seals)
    lines.append(f"seals: {sealed} of {len(found.rows)} lines have one; the last hash is {found.head or 'none'}")
    return "\n".join(lines)


def _plan(name: str) -> dict[str, Any]:
    """Return what a run's stages were planned to take before it began; {} where nobody planned."""
    try:
        summary = json_format.loads((_file(name).parent / "summary.json").read_text(encoding="utf-8"))
        plan = summary.get("plan") or {}
    except (OSError, ValueError, AttributeError):
        return {}
    return {stage: one for stage, one in plan.items() if isinstance(one, dict) and one.get("seconds")}


def _against_plan(name: str, sums: Mapping[str, Any]) -> list[str]:
    plan = {stage: one for stage, one in _plan(name).items() if stage in sums}
    if not plan:
        return []
    rows = [("stage", "planned", "actual", "plan's error", "tokens planned", "actual")]
    for stage, one in plan.items():
        seconds, tokens = sums[stage]["seconds"], sums[stage]["tokens"]
        error = f"{one['seconds'] / seconds - 1:+.0%}" if seconds else NOTHING
        counts = format_count(one.get("tokens") or 0), format_count(tokens)
        rows.append((stage, format_seconds(one["seconds"]), format_seconds(seconds), error, *counts))
        for part, took in (sums[stage].get(SECONDS_BY_PART) or {}).items():
            if wanted := (one.get("parts") or {}).get(part):
                error = f"{wanted / took - 1:+.0%}" if took else NOTHING
                rows.append((f"  {part}", format_seconds(wanted), format_seconds(took), error, "", ""))
    return ["", "as planned before the run:", columns(rows, right=range(1, len(rows[0]))), ""]


def _cells(values: Mapping[str, Any]) -> tuple[str, ...]:
    joules, tokens, carbon = values["joules"], values["tokens"], values.get("carbon_g")
    return (
        format_seconds(values["seconds"]),
        format_count(tokens),
        format_flops(values["flops"]) if values["flops"] else NOTHING,
        format_joules(joules),
        format_joules(joules / tokens) if tokens else NOTHING,
        NOTHING if carbon is None else format_grams(carbon),
        format_usd(values["usd"]),
        format_bytes(values["peak_memory_bytes"]) if values["peak_memory_bytes"] else NOTHING,
    )


def _compared(found: Mapping[str, Sealed]) -> str:
    sums = {name: sum_rows(one.rows) for name, one in found.items()}
    stages = [stage for stage in dict.fromkeys(s for one in sums.values() for s in one) if stage != ALL_STAGES]
    first = next(iter(sums.values()))
    rows: list[tuple[str, ...]] = [("stage", "run", *HEAD[1:], "time / first's", "energy / first's")]
    for stage in (*stages, ALL_STAGES):
        for name, one in sums.items():
            if stage in one:
                ratios = [_ratio(one[stage][key], first.get(stage, {}).get(key)) for key in ("seconds", "joules")]
                rows.append(("all" if stage == ALL_STAGES else stage, name, *_cells(one[stage]), *ratios))
    return columns(rows, right=range(2, len(rows[0])))


def _ratio(value: float, first: float | None) -> str:
    return f"{value / first:.2f}" if first else NOTHING


def _judge(found: Mapping[str, Sealed], expect: str | None) -> None:
    """Say what a crash cut off; fail where a ledger is not what was written."""
    for name, one in found.items():
        if one.torn:
            lines = ", ".join(map(str, one.torn))
            say(f"{name}: line {lines} was cut off, as by a crash, and is not counted")
    broken = [f"{name}: line {', '.join(map(str, one.broken))}" for name, one in found.items() if one.broken]
    if broken:
        raise RunError(
            f"{'; '.join(broken)} does not fit its seal: it, or what stood before it, was changed, put in or taken "
            "out after it was written; the sums above are not those of the run"
        )
    for name, one in found.items():
        if expect is not None and one.head != expect:
            raise RunError(f"{name}: the last hash is {one.head or 'none'}, not {expect}: lines at the end are missing")
