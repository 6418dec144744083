"""States that many processes write: whatever rows each has, others find theirs; what is lacking is told."""

from __future__ import annotations

import threading

import pytest
import torch

from leanseek.checkpoint.parts import Rows, read_parts, write_part
from leanseek.checkpoint.resume import FOLDER, check_checkpoint, load_state, save_checkpoint, save_part, staging
from leanseek.errors import CheckpointError

WHOLE = torch.arange(26.0).view(13, 2)


def part(first, last):
    return {"optimiser": {"first": {"a.b": Rows(WHOLE[first:last], first, 13)}, "steps": 4}}


def test_rows_of_three_processes_come_together_and_are_read_in_any_cut(tmp_path, tiny_model):
    folder = tmp_path / "pretrain-7"
    late = threading.Timer(0.2, save_part, (folder, 5, part(9, 13)))
    late.start()
    save_part(folder, 2, part(0, 4))
    save_checkpoint(folder, tiny_model, None, part(4, 9), (2, 5))
    late.join()
    assert not staging(folder).exists() and not list(tmp_path.glob(".*"))
    state = load_state(folder)["optimiser"]
    assert torch.equal(state["first"]["a.b"], WHOLE) and state["steps"] == 4
    lazy = load_state(folder, lazily=True)["optimiser"]["first"]["a.b"]
    assert lazy.shape == (13, 2)
    assert all(torch.equal(lazy[a:b], WHOLE[a:b]) for a in range(13) for b in range(a, 14))
    check_checkpoint(folder)
    damaged = next((folder / FOLDER).glob("part-00005*"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="part-00005"):
        check_checkpoint(folder)


def test_rows_that_nobody_wrote_are_told(tmp_path):
    write_part(tmp_path, 0, {"x": Rows(WHOLE[:4], 0, 13)})
    write_part(tmp_path, 1, {"x": Rows(WHOLE[6:], 6, 13)})
    write_part(tmp_path, 2, {})
    found = read_parts(tmp_path)["x"]
    assert torch.equal(found[7:9], WHOLE[7:9])
    with pytest.raises(CheckpointError, match="has no rows 4 to 12 of x"):
        found[:]
