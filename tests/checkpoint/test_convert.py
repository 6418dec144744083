"""Conversion: files become what loading them would give, and work that was stopped goes on as if it had not been."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanseek.checkpoint import convert as module
from leanseek.checkpoint.convert import Conversion, converted_config
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.checkpoint.quantised import dequantise_blocks, is_quantised, quantise_blocks
from leanseek.checkpoint.shards import INDEX, WEIGHTS, read_shards, stored_tensors
from leanseek.errors import CheckpointError, UsageError

WIDE = {"hidden_size": 160, "intermediate_size": 200, "moe_intermediate_size": 136, "n_routed_experts": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, make_model, tiny_tokenizer) -> Path:
    """A folder in fp32, several shards: never change it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(make_model(**WIDE), folder, tiny_tokenizer, max_shard_bytes=1_000_000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


@pytest.fixture
def source(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "source")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def same_files(a: Path, b: Path) -> bool:
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (a, b)]
    return contents[0] == contents[1]


@pytest.mark.parametrize("scale_format", ["fp32", "ue8m0"])
def test_fp8_is_written_as_deepseek_does(saved, tmp_path, scale_format):
    Conversion(saved, tmp_path / "fp8", "fp8", scale_format=scale_format).run()
    plain, found = tensors_of(saved), tensors_of(tmp_path / "fp8")
    for name, tensor in plain.items():
        if is_quantised(name):
            fmt = "ue8m0" if scale_format == "ue8m0" else None
            rounded, scale = quantise_blocks(tensor, scale_fmt=fmt)
            ours = found.pop(name)
            assert ours.dtype == torch.float8_e4m3fn and torch.equal(ours.view(torch.uint8), rounded.view(torch.uint8))
            assert torch.equal(found.pop(f"{name}_scale_inv"), scale)
        else:
            kind = torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16
            assert torch.equal(found.pop(name), tensor.to(kind)), name
    assert not found
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    form = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    assert config["quantization_config"] == form | ({"scale_fmt": "ue8m0"} if scale_format == "ue8m0" else {})
    assert config["torch_dtype"] == "bfloat16"
    assert load_model(tmp_path / "fp8", dtype="bfloat16").config.hidden_size == 160
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp8"]


@pytest.mark.parametrize("to", ["bf16", "fp32"])
def test_converted_files_are_what_loading_them_gives(saved, tmp_path, to):
    Conversion(saved, tmp_path / "fp8", "fp8").run()
    Conversion(tmp_path / "fp8", tmp_path / "plain", to).run()
    kind = {"bf16": "bfloat16", "fp32": "float32"}[to]
    loaded, ours = load_model(tmp_path / "fp8", dtype=kind), load_model(tmp_path / "plain", dtype=kind)
    pairs = zip(loaded.state_dict().items(), ours.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert config["torch_dtype"] == kind and "quantization_config" not in config
    assert {t.dtype for t in stored_tensors(read_shards(tmp_path / "plain")).values()} <= {"BF16", "F32"}


def test_there_and_back_is_byte_for_byte_the_same(saved, tmp_path):
    """Powers of two round no further; and fp32 to bf16 to fp32 to bf16 is bf16."""
    Conversion(saved, tmp_path / "a", "fp8", scale_format="ue8m0").run()
    Conversion(tmp_path / "a", tmp_path / "b", "bf16").run()
    Conversion(tmp_path / "b", tmp_path / "c", "fp8", scale_format="ue8m0").run()
    # Blocks whose largest number went down to a half of a power of two may take another, equal form.
    a, c = (tensors_of(tmp_path / name) for name in "ac")
    for name in a:
        if is_quantised(name):
            x, y = (dequantise_blocks(t[name], t[f"{name}_scale_inv"]) for t in (a, c))
            assert torch.equal(x.bfloat16(), y.bfloat16()), name
        elif not name.endswith("_scale_inv"):
            assert torch.equal(a[name], c[name])


def test_fp8_with_the_scales_that_are_wanted_is_copied(saved, tmp_path):
    Conversion(saved, tmp_path / "a", "fp8").run()
    Conversion(tmp_path / "a", tmp_path / "b", "fp8", max_shard_bytes=500_000).run()
    a, b = (tensors_of(tmp_path / name) for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a)
    Conversion(tmp_path / "a", tmp_path / "c", "fp8", scale_format="ue8m0").run()
    scales = [t for name, t in tensors_of(tmp_path / "c").items() if name.endswith("_scale_inv")]
    assert scales and all((torch.frexp(scale).mantissa == 0.5).all() for scale in scales)


def test_shards_and_index_fit_together(saved, tmp_path):
    Conversion(saved, tmp_path / "out", "bf16", max_shard_bytes=300_000).run()
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert len(files) > 3 and set(index["weight_map"].values()) == set(files)
    assert all(stored.dtype in ("BF16", "F32") for stored in stored_tensors(read_shards(tmp_path / "out")).values())
    Conversion(saved, tmp_path / "one", "bf16").run()
    assert (tmp_path / "one" / WEIGHTS).is_file() and not (tmp_path / "one" / INDEX).exists()


def test_whole_numbers_stay_and_frequencies_go(source, tmp_path):
    path = next(source.glob("*.safetensors"))
    more = {"model.table": torch.arange(5), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    save_file(load_file(path) | more | {"model.one": torch.tensor(2.5)}, path)
    Conversion(source, tmp_path / "out", "bf16").run()
    found = tensors_of(tmp_path / "out")
    assert torch.equal(found["model.table"], torch.arange(5)) and found["model.one"].item() == 2.5
    assert found["model.one"].shape == () and not any("inv_freq" in name for name in found)


def test_what_stands_beside_the_weights_is_copied_but_no_code_and_no_pickle(source, tmp_path):
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "LICENSE-MODEL").write_text("as you like")
    for name in ("pytorch_model.bin", "a.pt", "a.pkl", "modeling_deepseek.py", ".secret.json", "x.index.json", "a.sh"):
        (source / name).write_text("{}")
    (source / "resume").mkdir()
    Conversion(source, tmp_path / "out", "bf16").run()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "LICENSE-MODEL",
        WEIGHTS,
    }


def test_a_config_changes_where_it_must():
    before = {"a": 1, "dtype": "float16", "auto_map": {}, "quantization_config": {"quant_method": "fp8"}}
    assert converted_config(before, "fp32") == {"a": 1, "dtype": "float32", "torch_dtype": "float32"}
    assert "quantization_config" in before


class Stop(Exception):
    pass


def stopping_after(count: int):
    """Return an on_progress that raises at its `count`-th call, and the list of what it was told."""
    told: list[tuple[int, bool]] = []

    def on_progress(size: int, kept: bool) -> None:
        told.append((size, kept))
        if len(told) == count:
            raise Stop

    return on_progress, told


@pytest.mark.parametrize("count", [1, 60, 75])
def test_work_that_was_stopped_goes_on_and_ends_the_same(saved, tmp_path, count):
    Conversion(saved, tmp_path / "straight", "fp8", max_shard_bytes=300_000).run()
    work = Conversion(saved, tmp_path / "out", "fp8", max_shard_bytes=300_000)
    on_progress, told = stopping_after(count)
    with pytest.raises(Stop):
        work.run(on_progress)
    assert not (tmp_path / "out").exists() and not list(work.work.path.glob("*.part"))
    done = sorted(path.name for path in work.work.folder.iterdir())
    times = {name: (work.work.folder / name).stat().st_mtime_ns for name in done}
    assert bool(done) == (count > 1)
    on_progress, told = stopping_after(-1)
    again = Conversion(saved, tmp_path / "out", "fp8", max_shard_bytes=300_000)
    again.run(on_progress)
    assert sum(kept for _, kept in told) == len(done) and sum(size for size, _ in told) == again.total_bytes
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == times[name] for name in done)
    assert same_files(tmp_path / "out", tmp_path / "straight")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "straight"]


def stopped(source: Path, out: Path) -> Conversion:
    work = Conversion(source, out, "fp8", max_shard_bytes=300_000)
    with pytest.raises(Stop):
        work.run(stopping_after(60)[0])
    assert len(list(work.work.folder.iterdir())) > 1
    return work


def kept(work: Conversion) -> int:
    on_progress, told = stopping_after(-1)
    work.run(on_progress)
    return sum(one for _, one in told)


def test_shards_that_were_damaged_meanwhile_are_made_anew(saved, tmp_path):
    work = stopped(saved, tmp_path / "out")
    first, *rest = sorted(work.work.folder.iterdir())
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    rest[0].write_bytes(rest[0].read_bytes()[:-5])
    assert kept(Conversion(saved, tmp_path / "out", "fp8", max_shard_bytes=300_000)) == len(rest) - 1
    Conversion(saved, tmp_path / "straight", "fp8", max_shard_bytes=300_000).run()
    assert same_files(tmp_path / "out", tmp_path / "straight")


def test_another_source_or_other_options_start_anew(source, tmp_path):
    stopped(source, tmp_path / "a")
    assert kept(Conversion(source, tmp_path / "a", "fp8", max_shard_bytes=300_001)) == 0
    stopped(source, tmp_path / "b")
    assert kept(Conversion(source, tmp_path / "b", "bf16", max_shard_bytes=300_000)) == 0
    stopped(source, tmp_path / "c")
    path = next(source.glob("*.safetensors"))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert kept(Conversion(source, tmp_path / "c", "fp8", max_shard_bytes=300_000)) == 0
    work = stopped(source, tmp_path / "d")
    (work.work.path / "finished.json").write_text("[")
    assert kept(Conversion(source, tmp_path / "d", "fp8", max_shard_bytes=300_000)) == 0


def test_a_source_that_changes_meanwhile_is_told(source, tmp_path):
    def touch(*_: object) -> None:
        path = next(source.glob("*.safetensors"))
        os.utime(path, ns=(0, 1))

    with pytest.raises(CheckpointError, match="was changed meanwhile"):
        Conversion(source, tmp_path / "out", "bf16").run(touch)
    assert not (tmp_path / "out").exists()


def test_two_processes_do_not_do_the_same_work(saved, tmp_path):
    work = Conversion(saved, tmp_path / "out", "bf16")
    work.work.path.mkdir()
    with (work.work.path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="another process is converting"):
            work.run()


def test_too_small_a_disk_is_told_before_the_work(saved, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 5, 1000))
    with pytest.raises(CheckpointError, match=r"needs .* more, and 1 kB are free there"):
        Conversion(saved, tmp_path / "out", "bf16").run()
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.ShardWriter, "append", full)
    with pytest.raises(CheckpointError, match=r"cannot be written \(.*No space left.*what is finished is kept"):
        Conversion(saved, tmp_path / "out", "bf16").run()


def test_folders_that_are_not_wanted_are_refused(saved, tmp_path):
    with pytest.raises(UsageError, match="is the folder to be converted"):
        Conversion(saved, saved / ".." / saved.name, "bf16")
    (tmp_path / "link").symlink_to(saved)
    with pytest.raises(UsageError, match="is the folder to be converted"):
        Conversion(saved, tmp_path / "link", "bf16")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for out in (tmp_path / "full", tmp_path / "full" / "x"):
        with pytest.raises(CheckpointError, match="is not empty"):
            Conversion(saved, out, "bf16")
    with pytest.raises(CheckpointError, match="there is no such folder"):
        Conversion(tmp_path / "nothing", tmp_path / "out", "bf16")
    with pytest.raises(CheckpointError, match=r"config\.json: there is no such file"):
        Conversion(tmp_path / "full", tmp_path / "out", "bf16")
    for content in ("{", "[]", "[" * 100_000):
        (tmp_path / "full" / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json: not"):
            Conversion(tmp_path / "full", tmp_path / "out", "bf16")
    (tmp_path / "empty").mkdir()
    Conversion(saved, tmp_path / "empty", "bf16").run()
    assert (tmp_path / "empty" / WEIGHTS).is_file()


def test_options_that_are_none_are_refused(saved, tmp_path):
    with pytest.raises(UsageError, match="to = 'fp9' is not known; did you mean fp8"):
        Conversion(saved, tmp_path / "out", "fp9")
    for options in ({"scale_format": "ue8m1"}, {"scale_format": "ue8m0", "to": "bf16"}):
        with pytest.raises(UsageError, match="scale_format"):
            Conversion(saved, tmp_path / "out", **{"to": "fp8", **options})
    with pytest.raises(UsageError, match="max_shard_bytes = 0"):
        Conversion(saved, tmp_path / "out", "fp8", max_shard_bytes=0)


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("model.layers.0.mlp.up_proj.weight", torch.full((200, 160), float("nan")), "a weight that is not finite"),
        ("model.layers.0.mlp.up_proj.weight", torch.full((200, 160), float("-inf")), "a weight that is not finite"),
        ("model.x", torch.ones(3).to(torch.float8_e5m2), r"model\.x is F8_E5M2, which cannot be converted"),
        ("model.x", torch.ones(3).to(torch.complex64), r"model\.x is C64, which cannot be converted"),
    ],
)
def test_what_fp8_cannot_hold_is_told(source, tmp_path, name, tensor, reason):
    tensors = tensors_of(source) | {name: tensor}
    for path in source.glob("*.safetensors*"):
        path.unlink()
    save_file(tensors, source / WEIGHTS)
    with pytest.raises(CheckpointError, match=reason):
        Conversion(source, tmp_path / "out", "fp8").run()
    assert not (tmp_path / "out").exists()


def test_a_model_without_weights_to_quantise_is_told(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    save_file({"h.0.attn.c_attn.weight": torch.ones(4, 4)}, tmp_path / "source" / WEIGHTS)
    with pytest.raises(CheckpointError, match="no tensor that DeepSeek quantises"):
        Conversion(tmp_path / "source", tmp_path / "out", "fp8")


MEASURE = """
import sys
from pathlib import Path
import torch
from leanseek.checkpoint.convert import Conversion
def memory(kind):
    return int(Path("/proc/self/status").read_text().split(kind + ":")[1].split()[0]) * 1024
torch.set_num_threads(1)
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmHWM")
Conversion(sys.argv[1], sys.argv[2], sys.argv[3]).run()
print(memory("VmHWM") - before)
"""


def test_memory_holds_a_part_of_one_tensor(tmp_path):
    """96 MB in four tensors; less than one of them is in memory."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    save_file({name: torch.randn(6000, 1000) for name in names}, tmp_path / "source" / WEIGHTS)
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path / "source"), str(tmp_path / "out"), "fp8"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=True)
    assert int(done.stdout) < 24_000_000
