"""Model folders that several processes write: the same tensors as one writes, in files of each process's own."""

from __future__ import annotations

import json

import torch

from leanseek.checkpoint.directory import load_model, save_model
from leanseek.checkpoint.names import entries
from leanseek.checkpoint.resume import FOLDER, HASHES, check_checkpoint, save_checkpoint, save_part, staging
from leanseek.checkpoint.share import Files, Share


def test_what_three_processes_write_is_what_one_writes(tmp_path, tiny_model):
    tensors = {entry.name: entry.target for entry in entries(tiny_model)}
    turn = {name: number % 3 for number, name in enumerate(tensors)}
    files = Files.plan(tiny_model.config, "float32", lambda entry: turn[entry.name], max_shard_bytes=40_000)
    assert len(files.shards) > 3 and set(files.writers) == {0, 1, 2}
    shares = [Share(files, n, {name: one for name, one in tensors.items() if turn[name] == n}) for n in range(3)]
    folder = tmp_path / "pretrain-3"
    for number in (2, 1):
        save_part(folder, number, {}, shares[number])
    save_checkpoint(folder, shares[0], None, {"steps": 3}, (1, 2))
    assert not staging(folder).exists()
    check_checkpoint(folder)
    hashed = json.loads((folder / FOLDER / HASHES).read_text())
    assert {path.name for path in folder.glob("*.safetensors")} < hashed.keys()
    save_model(tiny_model, tmp_path / "alone")
    one, other = (load_model(path).state_dict() for path in (tmp_path / "alone", folder))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (folder / "config.json").read_text() == (tmp_path / "alone" / "config.json").read_text()
