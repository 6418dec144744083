"""Rates: how fast this machine trains and samples small models, as `leanseek plan --calibrate` measured it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from leanseek.cost.calibration import calibration_file
from leanseek.errors import ConfigError
from leanseek.files import write_json

FILE = "rates.json"


@dataclass(frozen=True)
class DecodeRates:
    """How fast an engine decodes some texts at once.

    Args:
        texts: how many.
        flops_per_s: of each token, beyond what every step takes.
        attend_flops_per_s: of attention over the cache. What many texts have cached is in no core's own cache.
    """

    texts: int
    flops_per_s: float
    attend_flops_per_s: float

    def __post_init__(self) -> None:
        _check_amounts(self)


@dataclass(frozen=True)
class EngineRates:
    """Seconds of one engine's work: reading prompts (few large products) and decoding (many small ones).

    Args:
        layer_read_s: of a call that reads prompts, for each layer, however little there is to read.
        text_s: of a prompt, however short.
        read_flops_per_s: of reading beyond that.
        attend_read_flops_per_s: of attention while reading.
        layer_decode_s: of a decoding step, for each layer, whatever it is for.
        decode: of tokens beyond that, at several numbers of texts, fewest first.
        sample_s: of beginning and ending a reply.
        leave_s: of a step for another number of texts than the one before: those that are left move up.
        keep_s: of a token, where the experts that it chose are kept.
        tell_step_s, tell_s: of a step whose tokens are told as soon as they are drawn, as a server does; of each token.
    """

    layer_read_s: float
    text_s: float
    read_flops_per_s: float
    attend_read_flops_per_s: float
    layer_decode_s: float
    decode: tuple[DecodeRates, ...]
    sample_s: float
    leave_s: float
    keep_s: float
    tell_step_s: float
    tell_s: float

    def __post_init__(self) -> None:
        _check_amounts(self)


@dataclass(frozen=True)
class Rates:
    """Seconds of small models' work on a processor: a fixed part of each step, and a rate for all above it.

    Small models spend much of a step between products, where no roofline looks: the fixed part is what a step takes
    however little there is in it.

    Args:
        layer_step_s: of an optimiser step, for each layer, whatever its tokens.
        train_flops_per_s: of training beyond that, all workers together.
        mtp_step_s, mtp_flops_per_s: the same of the MTP layer where it learns, its joining and its head too.
        forward_flops_per_s: of texts that are read by the model itself, by one thread, without learning.
        engine: one that works with one thread, as the stages of a run do.
        alone: one that has all threads, as a server's and `leanseek bench` do.
        workers: engines that a stage has at most, side by side.
        read_gain, decode_gain: how much more all of them together do than one.
        renew_parameters_per_s: of the model, taken up by all engines once its weights have changed.
        problem_s: making a problem and its prompt.
        reply_s, reply_token_s: taking a reply apart and checking it, and of each of its tokens.
        learn_documents_per_s: made, and a vocabulary learnt from them.
        encode_documents_per_s: made, and turned into tokens.
        search_documents_per_s: made, and searched for held-out problems.
        document_tokens: of those documents, on the average: longer ones take longer.
        watts: what the machine draws while it works, by the power model of its row.
        pulse_s: of the product that tells how fast the cores are (`leanseek.pulse`), while all that was measured.
        slower_pulse_s: the same of whichever core was slower.
    """

    layer_step_s: float
    train_flops_per_s: float
    mtp_step_s: float
    mtp_flops_per_s: float
    forward_flops_per_s: float
    engine: EngineRates
    alone: EngineRates
    workers: int
    read_gain: float
    decode_gain: float
    renew_parameters_per_s: float
    problem_s: float
    reply_s: float
    reply_token_s: float
    learn_documents_per_s: float
    encode_documents_per_s: float
    search_documents_per_s: float
    document_tokens: float
    watts: float
    pulse_s: float
    slower_pulse_s: float

    def __post_init__(self) -> None:
        _check_amounts(self)


def _check_amounts(rates: DecodeRates | EngineRates | Rates) -> None:
    for field in fields(rates):
        value = getattr(rates, field.name)
        if isinstance(value, EngineRates) or (value and isinstance(value, tuple)):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ValueError(f"{field.name} = {value!r} is not an amount")
        if (not value and not field.name.endswith("_s")) or (not value and field.name.endswith("_per_s")):
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
        values = json.loads(place.read_text(encoding="utf-8"))
        engines = {name: _engine_rates(values[name]) for name in ("engine", "alone")}
        return Rates(**{**values, **engines})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{place}: not the rates of a machine ({error}); run: leanseek plan --calibrate") from None


def _engine_rates(values: Mapping[str, Any]) -> EngineRates:
    return EngineRates(**{**values, "decode": tuple(DecodeRates(**one) for one in values["decode"])})


def save_rates(rates: Rates, path: Path | None = None) -> Path:
    """Keep this machine's rates; return where."""
    place = path or rates_file()
    write_json(place, asdict(rates))
    return place
