from __future__ import annotations

import json
from pathlib import Path

import pytest

from leanseek.checkpoint import convert as module
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.checkpoint.shards import WEIGHTS
from leanseek.cli import convert as command
from leanseek.cli.app import main


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_tokenizer) -> Path:
    save_model(tiny_model, tmp_path / "model", tiny_tokenizer)
    return tmp_path / "model"


def test_a_folder_becomes_fp8_and_loads(folder, tmp_path, capsys):
    assert main(["convert", str(folder), str(tmp_path / "fp8"), "--to", "fp8", "--scale-format", "ue8m0"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{tmp_path / 'fp8'}: fp8, ") and printed.out.count("\n") == 1
    assert f"converting {folder} to fp8: " in printed.err
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    assert config["quantization_config"]["scale_fmt"] == "ue8m0"
    assert load_model(tmp_path / "fp8").config.vocab_size == 320


def test_a_run_stands_for_its_latest_checkpoint(make_run, tiny_model, tiny_tokenizer, tmp_path, capsys):
    run = make_run()
    save_model(tiny_model, run.checkpoint("sft", 2), tiny_tokenizer)
    assert main(["convert", str(run.folder), str(tmp_path / "out"), "--to", "bf16", "--max-shard-bytes", "50k"]) == 0
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["out", "--to", "fp9"], 2, "--to 'fp9' is not known; did you mean fp8?; accepted: fp8, bf16, fp32"),
        (["out"], 2, "--to"),
        (["out", "--to", "bf16", "--scale-format", "ue8m0"], 2, "--scale-format ue8m0 goes with --to fp8"),
        (["out", "--to", "bf16", "--scale-format", "ue8m1"], 2, "ue8m0"),
        (["out", "--to", "bf16", "--max-shard-bytes", "0"], 2, "--max-shard-bytes 0: at least 1"),
        (["out", "--to", "bf16", "--max-shard-bytes", "many"], 2, "'many' is not a count"),
        (["model", "--to", "bf16"], 2, "is the folder to be converted"),
        (["full", "--to", "bf16"], 1, "full is not empty"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_status(folder, tmp_path, capsys, monkeypatch, options, status, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert main(["convert", "model", *options]) == status
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "model"]


def test_a_folder_that_is_none_or_is_damaged_is_told(folder, tmp_path, capsys):
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "out"), "--to", "bf16"]) == 1
    assert "nothing: there is no such folder" in capsys.readouterr().err
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "bf16"]) == 1
    assert "the file is damaged or was cut short" in capsys.readouterr().err


def test_ctrl_c_leaves_work_that_goes_on(folder, tmp_path, capsys, monkeypatch):
    pieces, calls = module.pieces, 0

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls == 60:
            raise KeyboardInterrupt
        return pieces(*arguments)

    line = ["convert", str(folder), str(tmp_path / "out"), "--to", "bf16", "--max-shard-bytes", "50k"]
    monkeypatch.setattr(module, "pieces", interrupted)
    assert main(line) == 130
    assert "stopped; finished files are kept: run the same command again" in capsys.readouterr().err
    (work,) = tmp_path.glob(".out.*")
    finished = {path.name for path in (work / "folder").iterdir()}
    assert finished and not (tmp_path / "out").exists()
    monkeypatch.setattr(module, "pieces", pieces)
    assert main(line) == 0
    assert finished < {path.name for path in (tmp_path / "out").iterdir()} and not list(tmp_path.glob(".out.*"))


def test_progress_counts_megabytes_and_not_what_was_kept():
    class Bar:
        done = started = 0

        def start_at(self, done: int) -> None:
            self.done = self.started = done

        def advance(self, count: int) -> None:
            assert count > 0
            self.done += count

    bar = Bar()
    meter = command._Meter(bar)
    meter(2_500_000, True)
    for _ in range(6):
        meter(250_000, False)
    assert bar.started == 2 and bar.done == 4


def test_another_target_is_a_class_and_a_line(folder, tmp_path, capsys, monkeypatch):
    target = tmp_path / "tapes.py"
    target.write_text(
        "class Tape:\n"
        "    total_bytes = written_bytes = 2_000_000\n"
        "    def __init__(self, source, out, to, **options):\n"
        "        self.out = out\n"
        "    def run(self, on_progress):\n"
        "        on_progress(2_000_000, False)\n"
        "        self.out.write_text('tape')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(command.TARGETS, "tape", "tapes:Tape")
    assert main(["convert", str(folder), str(tmp_path / "x.tape"), "--to", "tape"]) == 0
    assert (tmp_path / "x.tape").read_text() == "tape" and "tape, 2 MB" in capsys.readouterr().out
