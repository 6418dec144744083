"""Units: seconds, counts, bytes, FLOPs, joules and money as short text, and counts and money read from text."""

from __future__ import annotations

import math
import re

from leanseek.errors import UsageError

# Metric prefixes by power of a thousand; counts of tokens and parameters say B where physics says G.
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
COUNT_SUFFIXES = ("", "k", "M", "B", "T")
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400
JOULES_PER_WATT_HOUR = 3600.0


def format_seconds(seconds: float) -> str:
    """Return a duration with its two largest units: "320 ms", "45.2 s", "12 min 3 s", "2 h 5 min", "3 d 4 h"."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 0:
        return f"-{format_seconds(-seconds)}"
    if seconds < 0.9995:
        return f"{_three_digits(seconds * 1000)} ms"
    # 99.96 s would be shown as 100.0 s.
    if seconds < MINUTE_S - 0.05:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < HOUR_S:
        return _two_units(whole, MINUTE_S, "min", 1, "s")
    # Rounded to the smaller of the two units before it is split, so that no part reaches 60 or 24.
    whole = round(seconds / MINUTE_S) * MINUTE_S
    if whole < DAY_S:
        return _two_units(whole, HOUR_S, "h", MINUTE_S, "min")
    return _two_units(round(seconds / HOUR_S) * HOUR_S, DAY_S, "d", HOUR_S, "h")


def format_count(count: float) -> str:
    """Return a number of tokens or parameters: "512", "1.3M", "14.8T"."""
    return _scaled(count, COUNT_SUFFIXES, space="")


def format_bytes(count: float) -> str:
    """Return bytes in powers of 1000, as disks and data sheets count: "70.3 kB", "1.3 GB"."""
    return _scaled(count, PREFIXES) + "B"


def format_flops(flops: float) -> str:
    """Return floating-point operations: "3.1 PFLOP"."""
    return _scaled(flops, PREFIXES) + "FLOP"


def format_joules(joules: float) -> str:
    """Return energy: "7.4 kJ"."""
    return _scaled(joules, PREFIXES) + "J"


def format_watt_hours(joules: float) -> str:
    """Return energy, given in joules, as an electricity bill counts it: "2.1 Wh", "1.3 kWh"."""
    return _scaled(joules / JOULES_PER_WATT_HOUR, PREFIXES) + "Wh"


def format_usd(usd: float) -> str:
    """Return money with two digits that matter: "$0.0091", "$0.05", "$1.35", "$5,576,000"."""
    if not math.isfinite(usd):
        return "?"
    if usd < 0:
        return f"-{format_usd(-usd)}"
    if usd == 0:
        return "$0"
    if usd < 1e-4:
        return "less than $0.0001"
    if usd < 0.0995:
        text = f"${usd:.{1 - math.floor(math.log10(usd))}f}"
        return text.rstrip("0") if usd >= 0.0095 else text
    return f"${usd:,.2f}" if usd < 999.995 else f"${usd:,.0f}"


def format_percent(share: float) -> str:
    """Return a share in [0, 1] as "62.3%"."""
    return "?" if not math.isfinite(share) else f"{100 * share:.1f}%"


def parse_count(text: str) -> int:
    """Read a count such as "14.8T", "1.5e9", "40_000" or "2 M".

    Raises:
        UsageError: the text is not a count.
    """
    match = re.fullmatch(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*([kKmMbBgGtT]?)\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is not a count; write it as 14.8T, 300M, 40k or 1.5e9")
    suffix = match[2].lower().replace("g", "b")
    power = next(i for i, name in enumerate(COUNT_SUFFIXES) if name.lower() == suffix)
    number = float(match[1].replace(",", "").replace("_", ""))
    return round(number * math.pow(1000, power))


def parse_usd(text: str) -> float:
    """Read an amount such as "$2", "0.05" or "2 USD".

    Raises:
        UsageError: the text is not an amount of money.
    """
    match = re.fullmatch(r"\s*\$?\s*([0-9][0-9,]*(?:\.[0-9]+)?)\s*(?:usd)?\s*", text, flags=re.IGNORECASE)
    if match is None:
        raise UsageError(f"{text!r} is not an amount; write it as $2 or 0.05")
    return float(match[1].replace(",", ""))


def _scaled(value: float, suffixes: tuple[str, ...], space: str = " ") -> str:
    """Scale a value by thousands until three digits show it; ends with a space where `space` is one."""
    if not math.isfinite(value):
        return "?" + space
    if value < 0:
        return "-" + _scaled(-value, suffixes, space)
    power = 0
    # 999.95 is where one decimal would round up to a thousand.
    while value >= (999.5 if power == 0 else 999.95) and power < len(suffixes) - 1:
        value /= 1000
        power += 1
    if power == 0:
        number = f"{value:.0f}" if value == round(value) else _three_digits(value)
    else:
        number = _three_digits(value)
    return f"{number}{space}{suffixes[power]}"


def _three_digits(value: float) -> str:
    """Return a number below 1000 with two or three digits that say something: "0.14", "1.3", "14.8", "512"."""
    if value < 0.995:
        return f"{value:.2g}"
    text = f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
    return text.removesuffix(".0")


def _two_units(seconds: int, large_s: int, large: str, small_s: int, small: str) -> str:
    rest = seconds % large_s // small_s
    return f"{seconds // large_s} {large}" + (f" {rest} {small}" if rest else "")
