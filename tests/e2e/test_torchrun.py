"""Pretraining as torchrun starts it: the same curve on one process, on several, and after one was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from leanseek.checkpoint.directory import load_model
from leanseek.checkpoint.resume import load_state
from leanseek.log import RunLog
from leanseek.run import Run, to_toml
from leanseek.train.optimisers import Optimiser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# Muon's iteration in bf16 makes much of the last bit of a gradient.
ADAMW = {"name": "adamw", "lr": 3e-3}


def command(run: Run, folder: Path, ranks: int, *options: str) -> list[str]:
    (folder / "again.toml").write_text(to_toml(run.recipe))
    line = [sys.executable, "-m"]
    if ranks > 1:
        line += [
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(ranks),
            "--max-restarts",
            "1",
            "-m",
            "--",
        ]
    return [*line, "leanseek", "pretrain", str(folder / "again.toml"), *options]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def curve(folder: Path) -> list[dict[str, Any]]:
    keys = ("step", "loss", "mtp_loss", "gradient_norm", "load_factor", "validation_loss")
    return [
        {key: line[key] for key in keys if key in line} for line in RunLog(folder / "metrics.jsonl").read("pretrain")
    ]


def same_curve(one: Path, other: Path) -> None:
    """fp32 sums in another order, over a few steps of AdamW (Muon's bf16 iteration would make much of the last bit)."""
    first, second = curve(one), curve(other)
    assert len(first) == len(second) > 3
    for a, b in zip(first, second, strict=True):
        assert b == pytest.approx(a, rel=1e-4), (a, b)


def test_one_process_two_and_four_draw_the_same_curve_and_go_on_from_each_other(make_run, tmp_path):
    exact = {f"pretrain__optimiser__{key}": value for key, value in ADAMW.items()}
    run = make_run("alone", pretrain__steps=6, pretrain__keep_checkpoints=2, **exact)
    done: dict[str, Path] = {}
    for name, ranks, options in (
        ("one", 1, []),
        ("two", 2, ["--parallel.experts", "2", "--parallel.shards", "2"]),
    ):
        done[name] = tmp_path / name
        line = command(run, tmp_path, ranks, *options, "--run", str(done[name]))
        subprocess.run(line, check=True, env=environment(), timeout=300)
    same_curve(done["one"], done["two"])
    parts = sorted(path.name for path in (Run.open(done["two"]).latest("pretrain") / "resume").glob("part-*"))
    assert parts == ["part-00000.safetensors", "part-00001.safetensors"], "each rank wrote its rows"
    one, two = (load_model(Run.open(folder).latest("pretrain")) for folder in done.values())
    assert all(torch.isfinite(tensor).all() for tensor in two.state_dict().values())
    assert one.state_dict().keys() == two.state_dict().keys()
    rows = [json.loads(line) for line in (done["two"] / "ledger.jsonl").read_text().splitlines()]
    alone = [json.loads(line) for line in (done["one"] / "ledger.jsonl").read_text().splitlines()]
    assert [row["flops"] for row in rows] == [row["flops"] for row in alone]
    # Back to step 3, and on with four ranks from what two have left.
    two = Run.open(done["two"])
    shutil.rmtree(two.checkpoint("pretrain", 6))
    (done["two"] / "summary.json").write_text(json.dumps({"tokenizer": two.summary["tokenizer"]}))
    share = ["--parallel.pipeline", "2", "--parallel.experts", "2", "--pretrain.keep_checkpoints", "1"]
    line = command(run, tmp_path, 4, *share, "--run", str(done["two"]))
    subprocess.run(line, check=True, env=environment(), timeout=300)
    same_curve(done["one"], done["two"])
    # And what a pipeline has left is what one process goes on from.
    folder = Run.open(done["two"]).latest("pretrain")
    optimiser = Optimiser(load_model(folder), run.recipe.pretrain.optimiser)
    optimiser.load_state_dict(load_state(folder)["optimiser"])
    assert optimiser.steps == 6 and all(float(one.square().sum()) > 0 for one in optimiser.second.values())


@pytest.mark.parametrize("share", [["--parallel.experts", "2"], ["--parallel.pipeline", "2"]])
def test_a_rank_that_is_killed_comes_back_and_the_curve_is_the_same(make_run, tmp_path, share):
    run = make_run("alone", pretrain__steps=24, pretrain__checkpoint_every=4, pretrain__validate_every=24)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    line = command(run, tmp_path, 2, *share, "--run", str(undisturbed))
    subprocess.run(line, check=True, env=environment(), timeout=300)
    line = command(run, tmp_path, 2, *share, "--run", str(killed))
    with subprocess.Popen(line, env=environment(), stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 200
        while not Run.is_run(killed) or Run.open(killed).latest("pretrain") is None:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-2000:]
    assert b"going on" in errors
    assert curve(killed) == curve(undisturbed)
    first, second = (load_model(Run.open(folder).latest("pretrain")) for folder in (undisturbed, killed))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_two_ranks_and_a_pipeline_learn_a_longer_context_as_one_process_does(make_run, tmp_path):
    exact = {f"{kind}__optimiser__{key}": v for kind in ("pretrain", "extend") for key, v in ADAMW.items()}
    changes = {"extend__steps": 4, "extend__batch_sequences": 4, "extend__validate_every": 2, "extend__factor": 4.0}
    phase = {"extend": {"kind": "extend", "sequence_tokens": 64}}
    run = make_run("alone", stages=phase, environments=["running_total"], **(exact | changes))
    found: dict[str, dict[str, Any]] = {}
    for name, ranks, options in (
        ("one", 1, []),
        ("two", 2, ["--parallel.experts", "2", "--parallel.shards", "2"]),
        ("pipe", 2, ["--parallel.pipeline", "2"]),
    ):
        line = command(run, tmp_path, ranks, *options, "--run", str(tmp_path / name))
        line[line.index("leanseek") + 1] = "extend"
        subprocess.run(line, check=True, env=environment(), timeout=300)
        found[name] = Run.open(tmp_path / name).summary["extend"]
        loaded = load_model(Run.open(tmp_path / name).latest("extend"))
        assert loaded.config.yarn["factor"] == 4.0
    for name in ("two", "pipe"):
        for figure in ("before", "loss_by_length"):
            assert found[name][figure] == pytest.approx(found["one"][figure], rel=1e-4)
