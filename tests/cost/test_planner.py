"""The front door: names, folders and configs; amounts; defaults; and no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import leanseek
from leanseek.cost.machines import parse_machines
from leanseek.cost.planner import config_of, default_batch, default_precision, plan, work_of
from leanseek.errors import CheckpointError, UsageError
from leanseek.model.config import load_preset


def test_the_package_has_it():
    found = leanseek.plan("deepseek-v3", on="2048xh800", tokens="14.8T", layout="pp=16,ep=64,schedule=dualpipe")
    assert found.device_hours > 2e6 and found.usd == pytest.approx(2 * found.device_hours)
    assert 0 < found.mfu < 1 and found.days > 30 and found.joules > 1e12 and found.memory_per_device_bytes > 1e10


def test_without_a_layout_one_is_found():
    assert plan("deepseek-v2-lite", "8xh100", 10**9).fits


def test_a_model_is_a_name_a_folder_a_file_or_a_config(tmp_path):
    config = load_preset("laptop")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert config_of(config) is config and config_of("laptop") == config
    assert config_of(str(tmp_path)) == config_of(str(tmp_path / "config.json"))
    assert config_of(str(tmp_path)).hidden_size == config.hidden_size
    with pytest.raises(CheckpointError, match="did you mean deepseek-v3"):
        config_of("deepseek-v33")


def test_what_is_not_given_is_as_v3_had_it():
    machines = parse_machines("2048xh800")
    work = work_of(load_preset("deepseek-v3"), "14.8T", machines, None, None)
    assert (work.tokens, work.batch, work.length) == (14_800_000_000_000, 15360, 4096)
    assert default_batch(1) == 8 and default_batch(512) == 4096
    assert work_of(load_preset("laptop"), 5, machines, 3, None).length == load_preset("laptop").max_position_embeddings
    assert default_precision(machines) == "fp8" and default_precision(parse_machines("8xa100")) == "bf16"
    assert default_precision(parse_machines("2xvirtual-cpu")) == "fp32"


@pytest.mark.parametrize(("tokens", "batch"), [("many", None), (0, None), ("1T", 0)])
def test_amounts_that_are_none_are_told(tokens, batch):
    with pytest.raises(UsageError):
        plan("laptop", "h100", tokens, batch=batch)


def test_no_torch_is_imported():
    code = "import sys, leanseek; leanseek.plan('laptop', '8xh100', '1B'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
