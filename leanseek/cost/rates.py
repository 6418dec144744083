"""Rates: how fast this machine trains and samples small models, as `leanseek plan --calibrate` measured it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from leanseek.cost.calibration import calibration_file
from leanseek.errors import ConfigError
from leanseek.files import write_json

FILE = "rates.json"


@dataclass(frozen=True)
class Rates:
    """Seconds of small models' work on a processor: a fixed part of each step, and a rate for all above it.

    Small models spend much of a step between products, where no roofline looks: the fixed part is what a step takes
    however little there is in it.

    Args:
        layer_step_s: of an optimiser step, for each layer (the MTP layer too, where it learns), whatever its tokens.
        train_flops_per_s: of training beyond that, all workers together.
        layer_decode_s: of one decoding step, for each layer, however many texts it is for.
        decode_flops_per_s: of decoding beyond that.
        prefill_flops_per_s: of reading prompts.
        documents_per_s: made, and turned into tokens.
        watts: what the machine draws while it works, by the power model of its row.
    """

    layer_step_s: float
    train_flops_per_s: float
    layer_decode_s: float
    decode_flops_per_s: float
    prefill_flops_per_s: float
    documents_per_s: float
    watts: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"{field.name} = {value!r} is not an amount")
            if not value and field.name.endswith("_per_s"):
                raise ValueError(f"{field.name} = 0")


def fixed_and_rate(few: tuple[float, float], many: tuple[float, float]) -> tuple[float, float]:
    """Return the fixed seconds and the rate of work that takes seconds = fixed + amount / rate.

    Args:
        few, many: (amount, seconds), measured twice; noise never makes the fixed part negative.
    """
    (less, quick), (more, slow) = few, many
    rate = (more - less) / (slow - quick) if slow > quick else more / slow
    fixed = quick - less / rate
    return (fixed, rate) if fixed > 0 else (0.0, more / slow)


def rates_file() -> Path:
    """Return where the rates are kept: beside this machine's row of hardware."""
    return calibration_file().with_name(FILE)


def load_rates(path: Path | None = None) -> Rates | None:
    """Return this machine's rates; None: they have not been measured.

    Raises:
        ConfigError: the file is damaged.
    """
    place = path or rates_file()
    try:
        return Rates(**json.loads(place.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{place}: not the rates of a machine ({error}); run: leanseek plan --calibrate") from None


def save_rates(rates: Rates, path: Path | None = None) -> Path:
    """Keep this machine's rates; return where."""
    place = path or rates_file()
    write_json(place, asdict(rates))
    return place
