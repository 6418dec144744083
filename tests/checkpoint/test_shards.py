"""Shards: whatever a file says is checked against the file; any bytes give a result or one error, and no pickle."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from leanseek.checkpoint.quantised import read_rows
from leanseek.checkpoint.shards import (
    BITS,
    INDEX,
    LARGEST_HEADER_BYTES,
    WEIGHTS,
    read_shard,
    read_shards,
    shown,
    stored_tensors,
)
from leanseek.errors import CheckpointError


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Return a file's bytes; `header` is JSON text, bytes, or a value."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, stop: int, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def test_a_header_is_read_with_every_tensors_place(tmp_path):
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(4).bfloat16(),
        "c": torch.randn(8).to(torch.float8_e4m3fn),
        "none": torch.empty(0, 3),
        "one": torch.tensor(1.5),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    shard = read_shard(tmp_path / "x.safetensors")
    assert shard.tensors.keys() == tensors.keys() and shard.nbytes == (tmp_path / "x.safetensors").stat().st_size
    for name, tensor in tensors.items():
        stored = shard.tensors[name]
        assert stored.shape == tuple(tensor.shape) and stored.nbytes == tensor.nbytes and stored.count == tensor.numel()
        assert torch.equal(read_rows(stored).view(tensor.shape).float(), tensor.float())


def test_bytes_at_odd_places_are_read(tmp_path):
    """The format lets a number begin anywhere, as long as no byte is left out."""
    number = struct.pack("<2f", 1.5, -2.0)
    header = {"flag": entry(0, 1, "U8", (1,)), "x": entry(1, 9), "y": entry(9, 17)}
    (tmp_path / "x.safetensors").write_bytes(packed(header, b"\1" + number + number))
    shard = read_shard(tmp_path / "x.safetensors")
    assert [read_rows(shard.tensors[name]).tolist() for name in "xy"] == [[1.5, -2.0]] * 2


def test_a_map_that_is_written_to_changes_no_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed({"x": entry(0, 8)}, bytes(8)))
    view = read_shard(path).tensors["x"].map()
    view[0] = 7
    assert read_rows(read_shard(path).tensors["x"]).tolist() == [0, 0]


def test_a_file_that_shrinks_after_its_header_was_read_is_told(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed({"x": entry(0, 8)}, bytes(8)))
    shard = read_shard(path)
    path.write_bytes(packed({"x": entry(0, 8)}, bytes(4)))
    with pytest.raises(CheckpointError, match="x cannot be read any more"):
        shard.tensors["x"].map()
    path.unlink()
    with pytest.raises(CheckpointError, match="x cannot be read any more"):
        shard.tensors["x"].map()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "too short for a header"),
        (b"\0" * 7, "too short for a header"),
        (packed("{}", length=1 << 60), "at most 100,000,000 are read"),
        (packed("{}", length=(1 << 64) - 1), "at most 100,000,000 are read"),
        (packed("{}", length=LARGEST_HEADER_BYTES + 1), "at most 100,000,000 are read"),
        (packed("{}", length=LARGEST_HEADER_BYTES), "which the file does not have"),
        (packed("{}", length=3), "which the file does not have"),
        (packed(""), "not JSON"),
        (packed("{"), "not JSON"),
        (packed(b"\xff\xfe{}"), "not JSON"),
        (packed('{"a": 1}'.encode("utf-16")), "not JSON"),
        (packed("[" * 100_000), "not JSON"),
        (packed('{"a": ' + "9" * 5000 + "}"), "digits"),
        (packed("[]"), "not a JSON object"),
        (packed("3"), "not a JSON object"),
        (packed({"__metadata__": 3}), "object of texts"),
        (packed({"__metadata__": {"a": 3}}), "object of texts"),
        (packed({"x": 3}), "x: an object with dtype"),
        (packed({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)), "x: an object with dtype"),
        (packed({"x": entry(0, 8, "F33")}, bytes(8)), "x: dtype 'F33' is not known"),
        (packed({"x": entry(0, 8, 3)}, bytes(8)), "x: dtype '3' is not known"),
        (packed({"x": entry(0, 8, ["F32"])}, bytes(8)), "is not known"),
        (packed({"x": entry(0, 8, shape=(-2,))}, bytes(8)), "x: its shape"),
        (packed({"x": entry(0, 8, shape=(2.0,))}, bytes(8)), "x: its shape"),
        (packed({"x": entry(0, 4, shape=(True,))}, bytes(4)), "x: its shape"),
        (packed({"x": entry(0, 4, shape=(1,) * 65)}, bytes(4)), "x: its shape"),
        (packed({"x": entry(0, 8, shape=(1 << 63, 0))}), "x: its shape"),
        (packed({"x": {**entry(0, 8), "shape": "2"}}, bytes(8)), "x: its shape"),
        (packed({"x": entry(-8, 0)}, bytes(8)), "x: its data_offsets"),
        (packed({"x": {**entry(0, 8), "data_offsets": [0]}}, bytes(8)), "x: its data_offsets"),
        (packed({"x": {**entry(0, 8), "data_offsets": [0, "8"]}}, bytes(8)), "x: its data_offsets"),
        (packed({"x": entry(0, 7)}, bytes(7)), "does not take 7 bytes"),
        (packed({"x": entry(8, 0)}, bytes(8)), "does not take -8 bytes"),
        (packed({"x": entry(0, 8, shape=(1 << 62, 1 << 62))}, bytes(8)), "does not take 8 bytes"),
        (packed({"x": entry(0, 1, "F4", (3,))}, bytes(1)), "does not take 1 bytes"),
        (packed({"x": entry(0, 8), "y": entry(4, 12)}, bytes(12)), "y: its bytes overlap"),
        (packed({"x": entry(0, 8), "y": entry(0, 8)}, bytes(8)), "its bytes overlap"),
        (packed({"x": entry(0, 8), "y": entry(12, 20)}, bytes(20)), "y: its bytes leave a gap"),
        (packed({"x": entry(4, 12)}, bytes(12)), "x: its bytes leave a gap"),
        (packed({"x": entry(0, 8)}, bytes(7)), "its tensors end at byte"),
        (packed({"x": entry(0, 8)}, bytes(9)), "its tensors end at byte"),
        (packed({"x": entry(1 << 62, (1 << 62) + 8)}, bytes(8)), "leave a gap"),
        (packed('{"x": %s, "x": %s}' % ((json.dumps(entry(0, 8)),) * 2), bytes(8)), "names x twice"),
        (packed('{"x": {"dtype": "F32", "dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'), "names dtype twice"),
        (packed({"x\x1b[2J": 3}), r"'x\\x1b\[2J': an object"),
    ],
)
def test_what_a_header_cannot_say_is_refused(tmp_path, content: bytes, reason: str):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_shard(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: the file is damaged or was cut short (") and len(message) < 700 + len(str(path))


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_shard(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_shard(tmp_path)


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    for content in (pickle.dumps(Trap()), pickle.dumps(Trap(), protocol=0)):
        (tmp_path / WEIGHTS).write_bytes(content)
        with pytest.raises(CheckpointError):
            read_shards(tmp_path)
    torch.save({"x": torch.ones(2)}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError):
        read_shards(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"it has pytorch_model\.bin, which is not read"):
        read_shards(tmp_path)
    assert not (tmp_path / "sprung").exists()


# Values that a header may have where others belong, hostile ones more often than not.
NUMBERS = st.one_of(st.integers(-2, 40), st.sampled_from((1 << 60, 1 << 63, -(1 << 63), 10**400)))
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(sorted(BITS)), st.none(), st.integers(), st.text(max_size=3)),
        "shape": st.one_of(st.lists(NUMBERS, max_size=4), st.none(), st.text(max_size=3), st.lists(st.floats())),
        "data_offsets": st.one_of(st.lists(NUMBERS, min_size=2, max_size=2), st.lists(NUMBERS, max_size=3), st.none()),
        "more": st.integers(),
    },
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
HEADERS = st.dictionaries(st.one_of(st.text(max_size=3), st.just("__metadata__")), st.one_of(ENTRIES, JSON), max_size=4)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Draw bytes: any, a header with anything behind it, or a whole file with a few bytes changed."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(st.binary(max_size=64))
    if kind == 1:
        length = draw(st.one_of(st.none(), st.integers(0, (1 << 64) - 1)))
        return packed(draw(st.one_of(HEADERS, JSON)), draw(st.binary(max_size=40)), length)
    sizes = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    header, at = {}, 0
    for number, size in enumerate(sizes):
        dtype = draw(st.sampled_from(("F32", "BF16", "F8_E4M3", "U8", "I64")))
        nbytes = size * BITS[dtype] // 8
        header[f"t{number}"] = entry(at, at + nbytes, dtype, (size,))
        at += nbytes
    content = bytearray(packed(header, bytes(at)))
    if kind == 3:
        for _ in range(draw(st.integers(1, 3))):
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=files())
def test_any_bytes_are_a_shard_or_one_error(tmp_path, content: bytes):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    try:
        shard = read_shard(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return
    assert sum(tensor.nbytes for tensor in shard.tensors.values()) <= len(content)
    for tensor in shard.tensors.values():
        assert len(tensor.map()) == tensor.nbytes
    # The format's own library accepts whatever is accepted here.
    with safe_open(path, framework="pt") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    assert {name: tensor.shape for name, tensor in shard.tensors.items()} == theirs


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=40), JSON, st.fixed_dictionaries({"weight_map": JSON})))
def test_any_index_is_one_or_an_error(tmp_path, content: Any):
    (tmp_path / INDEX).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(CheckpointError, match="index"):
        read_shards(tmp_path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two shards, x and y, with their index."""
    save_file({"x": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"y": torch.ones(2)}, tmp_path / "two.safetensors")
    write_map(tmp_path, {"x": "one.safetensors", "y": "two.safetensors"})
    return tmp_path


def write_map(folder: Path, places: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def test_an_index_leads_to_its_shards(folder):
    assert stored_tensors(read_shards(folder)).keys() == {"x", "y"}


def test_a_name_that_the_index_lacks_is_there_all_the_same(folder):
    write_map(folder, {"x": "one.safetensors"})
    save_file({"x": torch.ones(2), "z": torch.ones(1)}, folder / "one.safetensors")
    assert stored_tensors(read_shards(folder)).keys() == {"x", "z"}


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        ({"x": "three.safetensors"}, r"three\.safetensors: there is no such file"),
        ({"x": "two.safetensors", "y": "two.safetensors"}, r"x is not in two\.safetensors, as it says \(no shard"),
        ({"x": "two.safetensors", "y": "one.safetensors"}, r"x is not in two\.safetensors, as it says \(it is in one"),
        ({"xx": "one.safetensors"}, "xx is not in one"),
        ({"x": "../one.safetensors"}, "must lie in the folder itself"),
        ({"x": "/one.safetensors"}, "must lie in the folder itself"),
        ({"x": "a\\one.safetensors"}, "must lie in the folder itself"),
        ({"x": ".one.safetensors"}, "must lie in the folder itself"),
        ({"x": "a/../one.safetensors"}, "must lie in the folder itself"),
        ({"x": "o\0.safetensors"}, "must lie in the folder itself"),
        ({"x": "pytorch_model.bin"}, r"'pytorch_model\.bin', which is not a \.safetensors file"),
        ({"x": 3}, r"which is not a \.safetensors file"),
        ({}, "names no tensor"),
        ([], "not an index of shards"),
    ],
)
def test_an_index_that_misleads_is_refused(folder, places: Any, reason: str):
    write_map(folder, places)
    with pytest.raises(CheckpointError, match=reason):
        read_shards(folder)


def test_a_tensor_in_two_shards_is_refused(folder):
    save_file({"x": torch.ones(2), "y": torch.ones(2)}, folder / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"two\.safetensors: x is in one\.safetensors too"):
        read_shards(folder)


def test_links_to_files_elsewhere_are_followed(folder, tmp_path_factory):
    """A download of the hub is a folder of links."""
    linked = tmp_path_factory.mktemp("linked")
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    assert stored_tensors(read_shards(linked)).keys() == {"x", "y"}


def test_names_are_shown_whole_short_and_harmless():
    assert shown("model.norm.weight") == "model.norm.weight"
    assert shown("a\nb") == r"'a\nb'" and shown("") == "''" and shown(" a") == "' a'"
    assert shown("a" * 500).endswith("...") and len(shown("a" * 500)) == 120


def test_reading_headers_needs_no_torch():
    code = "import sys, leanseek.checkpoint.shards, leanseek.checkpoint.writer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
