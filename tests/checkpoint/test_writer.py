"""Writer: what it writes is what the format's own library writes and reads."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanseek.checkpoint.quantised import bytes_of
from leanseek.checkpoint.shards import INDEX, WEIGHTS, Layout, read_shard
from leanseek.checkpoint.writer import ShardWriter, shard_names, split, write_index

TENSORS = {
    "b": torch.randn(3, 5),
    "a": torch.randn(7).bfloat16(),
    "q": torch.randn(3, 3).to(torch.float8_e4m3fn),
    "n": torch.arange(3),
    "none": torch.empty(0, 4),
    "é": torch.randn(2).half(),
}
NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
}
LAYOUTS = [Layout(name, NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in TENSORS.items()]


def test_a_shard_is_byte_for_byte_that_of_the_library(tmp_path):
    with ShardWriter(tmp_path / "ours", LAYOUTS) as writer:
        for name, tensor in reversed(TENSORS.items()):
            writer.append(name, bytes_of(tensor))
    save_file(TENSORS, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    for name, tensor in load_file(tmp_path / "ours").items():
        assert torch.equal(tensor.float(), TENSORS[name].float())


def test_tensors_are_written_in_pieces_and_in_any_order(tmp_path):
    with ShardWriter(tmp_path / "x", LAYOUTS) as writer:
        parts = [(name, bytes_of(tensor)[i : i + 5]) for i in range(0, 100, 5) for name, tensor in TENSORS.items()]
        for name, part in parts:
            writer.append(name, part)
    for name, tensor in load_file(tmp_path / "x").items():
        assert torch.equal(tensor.float(), TENSORS[name].float())


def test_a_shard_that_was_not_finished_is_an_error_and_no_other_error_is_hidden(tmp_path):
    with pytest.raises(AssertionError), ShardWriter(tmp_path / "x", LAYOUTS):
        pass
    with pytest.raises(OSError, match="disk"), ShardWriter(tmp_path / "x", LAYOUTS):
        raise OSError("disk")


def test_shards_are_filled_in_order():
    layouts = [Layout(str(i), "U8", (size,)) for i, size in enumerate((4, 4, 2, 9, 1, 1))]
    assert [[t.name for t in shard] for shard in split(layouts, 8)] == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert [[t.name for t in shard] for shard in split(layouts, 100)] == [list("012345")]
    assert split([], 8) == [[]]


def test_one_shard_has_the_plain_name_and_several_an_index(tmp_path):
    assert shard_names(1) == [WEIGHTS]
    assert shard_names(2) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    write_index(tmp_path, [LAYOUTS])
    assert not (tmp_path / INDEX).exists()
    write_index(tmp_path, [LAYOUTS[:2], LAYOUTS[2:]])
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    assert index["weight_map"]["b"] == shard_names(2)[0] and index["weight_map"]["n"] == shard_names(2)[1]


def test_an_empty_shard_is_one(tmp_path):
    with ShardWriter(tmp_path / "x", []):
        pass
    assert not read_shard(tmp_path / "x").tensors
