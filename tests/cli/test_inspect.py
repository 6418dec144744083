from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from leanseek.checkpoint.convert import Conversion
from leanseek.checkpoint.directory import save_model
from leanseek.checkpoint.shards import WEIGHTS
from leanseek.cli.app import main
from leanseek.model.config import preset_names


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_tokenizer) -> Path:
    save_model(tiny_model, tmp_path / "model", tiny_tokenizer, max_shard_bytes=100_000)
    return tmp_path / "model"


def shown(capsys, *tokens: str) -> str:
    assert main(["inspect", *tokens]) == 0
    return capsys.readouterr().out


def free_memory(monkeypatch, size: float) -> None:
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(int(size)))


def test_v3_is_described_from_its_shape(capsys, monkeypatch):
    free_memory(monkeypatch, 16e9)
    found = json.loads(shown(capsys, "deepseek-v3", "--json"))
    assert found["parameters"]["total"] == 671_026_404_352 and found["files"] is None
    assert found["cache_bytes_per_token"] == {"fp32": 140_544, "bf16": 70_272}
    assert found["flops_per_token"]["text_tokens"] == 4096
    need = found["serving"]["as"]["bf16"]
    assert need["weights_bytes"] == 2 * (671_026_404_352 + found["parameters"]["mtp"]) and need["fits"] is False
    assert need["cache_bytes"] == 163_840 * 70_272 and found["serving"]["free_bytes"] == 16_000_000_000
    page = shown(capsys, "deepseek-v3")
    for words in (
        "deepseek-v3\n",
        "DeepseekV3ForCausalLM (deepseek_v3), 61 layers",
        "671B, 37.6B active",
        "routed experts            654B   20.4B",
        "with 16 GB of memory free",
        "bf16         1.4 TB  11.5 GB  1.4 TB  no",
    ):
        assert words in page, words


@pytest.mark.parametrize("name", preset_names())
def test_every_shape_is_described(capsys, name):
    parts = json.loads(shown(capsys, name, "--json"))["parameters"]
    counted = "embedding attention dense_mlp routed_experts shared_experts router norms head".split()
    assert sum(parts[part] for part in counted) == parts["total"]
    assert name in shown(capsys, name)


def test_a_folder_is_described_with_its_files(folder, capsys, monkeypatch):
    free_memory(monkeypatch, 16e9)
    found = json.loads(shown(capsys, str(folder), "--json"))
    files = found["files"]
    assert files["shards"] == len(list(folder.glob("*.safetensors"))) > 3
    assert files["bytes"] == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert list(files["dtypes"]) == ["F32"] and files["tokenizer"] and files["chat_template"]
    assert all(need["fits"] for need in found["serving"]["as"].values()) and found["quantised"] is None
    page = shown(capsys, str(folder))
    assert f"{files['shards']} files, {files['tensors']:,} tensors" in page and "fits here" in page
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text("[")
    files = json.loads(shown(capsys, str(folder), "--json"))["files"]
    assert not files["tokenizer"] and not files["chat_template"]
    (folder / "chat_template.jinja").touch()
    assert json.loads(shown(capsys, str(folder), "--json"))["files"]["chat_template"]


def test_a_quantised_folder_says_so(folder, tmp_path, capsys):
    Conversion(folder, tmp_path / "fp8", "fp8", scale_format="ue8m0").run()
    found = json.loads(shown(capsys, str(tmp_path / "fp8"), "--json"))
    assert found["quantised"]["scale_fmt"] == "ue8m0" and set(found["files"]["dtypes"]) == {"F8_E4M3", "BF16", "F32"}
    page = shown(capsys, str(tmp_path / "fp8"))
    assert "fp8, e4m3, [128, 128], ue8m0" in page and "1 file, " in page
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    (tmp_path / "fp8" / "config.json").write_text(json.dumps({**config, "quantization_config": 3}))
    assert "quantised" in shown(capsys, str(tmp_path / "fp8"))


def test_a_run_stands_for_its_latest_checkpoint(make_run, tiny_model, capsys):
    run = make_run()
    save_model(tiny_model, run.checkpoint("sft", 2))
    assert json.loads(shown(capsys, str(run.folder), "--json"))["model"].endswith("sft-2")


def test_what_is_neither_is_told(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, said in (
        ("deepseek-v33", "neither a folder nor a shape; did you mean deepseek-v3?"),
        ("./nothing", "nothing: there is no such folder"),
    ):
        assert main(["inspect", name]) == 1
        assert said in capsys.readouterr().err
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["inspect", "model"]) == 1
    assert f"{path.name}: the file is damaged or was cut short" in capsys.readouterr().err


def test_no_torch_is_imported(tmp_path, tiny_model):
    save_model(tiny_model, tmp_path / "model")
    assert (tmp_path / "model" / WEIGHTS).is_file()
    for name in ("laptop", str(tmp_path / "model")):
        code = (
            "import sys; from leanseek.cli.app import main\n"
            f"sys.exit(main(['inspect', {name!r}]) or 'torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
