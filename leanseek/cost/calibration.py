"""Calibration: the row of hardware that was measured on this machine, kept in the user's folder of settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from leanseek import variables
from leanseek.cost.hardware import Hardware
from leanseek.errors import ConfigError
from leanseek.files import write_json

FILE = "hardware.json"


def calibration_file() -> Path:
    """Return where the row is kept: leanseek/hardware.json in $XDG_CONFIG_HOME, or in .config of the home folder."""
    return variables.config_folder() / "leanseek" / FILE


def load_this(path: Path | None = None) -> Hardware | None:
    """Return this machine's row; None: it has not been measured.

    Args:
        path: None: where `save_this` puts it.
    Raises:
        ConfigError: the file is damaged.
    """
    place = path or calibration_file()
    try:
        values = json.loads(place.read_text(encoding="utf-8"))
        return Hardware(**values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{place}: not a row of hardware ({error}); run again: leanseek plan --calibrate") from None


def save_this(row: Hardware, path: Path | None = None) -> Path:
    """Keep this machine's row; return where."""
    place = path or calibration_file()
    write_json(place, {**asdict(row), "sources": dict(row.sources)})
    return place
