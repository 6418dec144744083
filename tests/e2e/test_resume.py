"""Killed at random moments, again and again, a run ends with the bits of one that was never stopped."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from leanseek.checkpoint.resume import _flatten, load_state
from leanseek.run import Run
from leanseek.settings import load_recipe

from ..conftest import TINY, TINY_RECIPE

# Enough for each stage to be hit; the whole line takes several times as long to begin as to run.
KILLS = 20
TRAINED = ("pretrain", "sft", "grpo")


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "leanseek", "grpo", "--run", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(folder: Path) -> float:
    """Let a run end by itself; return the seconds that it took."""
    start_s = time.monotonic()
    process = start(folder)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told.decode()[-2000:]
    return time.monotonic() - start_s


def made(tmp_path: Path, name: str) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deepseek_v3", **TINY}))
    recipe = TINY_RECIPE.replace("checkpoint_every = 3", "checkpoint_every = 1").replace("steps = 6", "steps = 40")
    (tmp_path / "tiny.toml").write_text(recipe)
    overrides = {"model": str(tmp_path / "config.json"), "grpo.steps": 12, "sft.validate_every": 20}
    Run.create(tmp_path / name, load_recipe(tmp_path / "tiny.toml", overrides))
    return tmp_path / name


def bits(folder: Path, stage: str) -> dict[str, Any]:
    latest = Run.open(folder).latest(stage)
    assert latest is not None
    state = dict(_flatten(load_state(latest)))
    return {"weights": (latest / "model.safetensors").read_bytes(), **state}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_twenty_times_it_ends_with_the_same_bits(tmp_path):
    whole, killed = made(tmp_path, "whole"), made(tmp_path, "killed")
    seconds = finish(whole)
    rng = random.Random(0)
    survived = 0
    for _ in range(KILLS):
        process = start(killed)
        try:
            # From before the first checkpoint of this process to near the end of the run.
            process.wait(timeout=rng.uniform(0.3, 1.0) * seconds / 2)
            survived += 1
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
    assert survived < KILLS, "at least once it was killed at work"
    finish(killed)
    for stage in TRAINED:
        one, other = bits(whole, stage), bits(killed, stage)
        assert one.keys() == other.keys()
        for key, value in one.items():
            same = torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
            assert same, (stage, key)
