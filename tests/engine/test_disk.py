"""The cache on disk: what was read or said is found again after a restart, and damage is a miss."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import leanseek.engine.engine as module
from leanseek.engine.disk import SUFFIX, Disk
from leanseek.engine.engine import Engine
from leanseek.engine.paged_cache import PagedCache
from leanseek.engine.request import SamplingParams
from leanseek.errors import EngineError

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_TOKENS", 8)


def prompt(tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 320, (tokens,), generator=torch.Generator().manual_seed(1000 + seed)).tolist()


def open_engine(model, folder: Path, *, blocks: int = 40, name: str = "model", budget: int = 1 << 30) -> Engine:
    specs = model.cache_specs()[: model.config.num_hidden_layers]
    disk = Disk(folder, name, budget)
    return Engine(model, cache_bytes=blocks * 8 * PagedCache.bytes_per_token(specs), disk=disk)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob(f"*{SUFFIX}"))


def put(disk: Disk, tokens: list[list[int]], scope: str = "") -> list[str]:
    """Write a chain of blocks."""
    parent = root = disk.root_key(scope)
    keys = []
    for part in tokens:
        key = disk.key(parent, part)
        assert disk.put(root, parent, key, part, bytes(str(part), "ascii"))
        keys.append(key)
        parent = key
    disk.flush()
    return keys


def test_blocks_are_there_after_a_restart_in_their_order(tmp_path):
    disk = Disk(tmp_path, "model", 1 << 20)
    keys = put(disk, [[1, 2], [3, 4], [5]])
    put(disk, [[1, 2]], "other")
    disk.close()
    again = Disk(tmp_path, "model", 1 << 20)
    assert [entry.key for entry in again.entries() if entry.root == again.root_key("")] == keys
    assert len(again) == 4 and again.get(keys[1]) == b"[3, 4]"
    assert again.used_bytes == sum(path.stat().st_size for path in files(tmp_path))
    assert len(Disk(tmp_path, "another model", 1 << 20)) == 0


def test_what_was_used_longest_ago_goes_first(tmp_path):
    disk = Disk(tmp_path, "model", 1 << 20)
    one, other = put(disk, [[1]])[0], put(disk, [[2]])[0]
    size = files(tmp_path)[0].stat().st_size
    disk.budget_bytes = 3 * size - 1
    assert disk.get(one) is not None
    third = put(disk, [[3]])[0]
    assert disk.get(other) is None and disk.get(one) is not None and disk.get(third) is not None
    assert disk.used_bytes <= disk.budget_bytes and len(files(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "renamed", "swapped header", "text"])
def test_a_damaged_file_is_a_miss_and_is_deleted(tmp_path, damage):
    disk = Disk(tmp_path, "model", 1 << 20)
    first, second = put(disk, [[1, 2], [3, 4]])
    path = next(p for p in files(tmp_path) if p.name.startswith(second))
    data = path.read_bytes()
    if damage == "renamed":
        path.rename(path.with_name("0" * 40 + SUFFIX))
    else:
        path.write_bytes(
            {
                "cut": data[:-3],
                "flipped": data[:-1] + bytes([data[-1] ^ 1]),
                "emptied": b"",
                "swapped header": data.replace(b"[3, 4]", b"[3, 5]", 1),
                "text": b"hello",
            }[damage]
        )
    again = Disk(tmp_path, "model", 1 << 20)
    assert again.get(second) is None and again.get(first) == b"[1, 2]"
    assert again.damaged >= 1 or damage == "renamed"
    assert not path.exists()


def test_any_bytes_are_read_without_another_failure(tmp_path):
    rng = random.Random(0)
    disk = Disk(tmp_path, "model", 1 << 20)
    (key,) = put(disk, [[1, 2]])
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data[: rng.randint(0, len(data))]))
        found = Disk(tmp_path, "model", 1 << 20).get(key)
        assert found in (None, b"[1, 2]")


def test_half_written_files_of_a_crash_are_swept_up(tmp_path):
    disk = Disk(tmp_path, "model", 1 << 20)
    (disk.folder / ".abc.1234").write_bytes(b"half")
    assert len(Disk(tmp_path, "model", 1 << 20)) == 0 and not list(disk.folder.iterdir())


def test_what_is_kept_beside_the_blocks_stays(tmp_path):
    """The replays are: without them a restarted server reads what was said in other tokens than it was said in."""
    disk = Disk(tmp_path, "model", 1 << 20)
    (disk.folder / "replays.jsonl").write_text("kept")
    assert Disk(tmp_path, "model", 1 << 20).damaged == 0
    assert (disk.folder / "replays.jsonl").read_text() == "kept"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EngineError, match=r"the cache folder .*file cannot be used"):
        Disk(tmp_path / "file", "model", 1)


def test_a_full_disk_stops_the_writing_and_nothing_else(tmp_path, tiny_model, monkeypatch, capsys):
    engine = open_engine(tiny_model, tmp_path)
    monkeypatch.setattr(Disk, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    engine.generate([prompt(30)], GREEDY)
    engine.prefixes.disk.flush()
    assert engine.generate([prompt(30)], GREEDY)[0].cached_tokens == 29, "memory still has it"
    assert capsys.readouterr().err.count("takes no more blocks") == 1


@pytest.mark.parametrize("shape", [{}, {"q_lora_rank": 6}])
def test_a_restarted_engine_goes_on_with_what_it_knew(tmp_path, make_model, shape):
    model, ids = make_model(**shape), prompt(30)
    first = open_engine(model, tmp_path)
    said = first.generate([ids], GREEDY)[0].token_ids
    first.prefixes.disk.close()
    again = open_engine(model, tmp_path)
    history = [*ids, *said, *prompt(3, 1)]
    output = again.generate([history], GREEDY)[0]
    assert output.cached_tokens == len(ids) + len(said) - 1
    assert output.token_ids == Engine(model).generate([history], GREEDY)[0].token_ids
    again.check_integrity()


def test_what_memory_has_no_room_for_comes_back_from_disk(tmp_path, tiny_model):
    engine = open_engine(tiny_model, tmp_path, blocks=8)
    prompts = [prompt(30, i) for i in range(6)]
    for ids in prompts:
        engine.generate([ids], GREEDY)
        engine.prefixes.disk.flush()
    for ids in prompts:
        output = engine.generate([ids], GREEDY)[0]
        assert output.cached_tokens == 29
        assert output.token_ids == Engine(tiny_model).generate([ids], GREEDY)[0].token_ids
        engine.check_integrity()


def test_a_block_that_the_disk_lost_is_read_anew(tmp_path, tiny_model):
    ids = prompt(40)
    engine = open_engine(tiny_model, tmp_path)
    engine.generate([ids], GREEDY)
    engine.prefixes.disk.close()
    again = open_engine(tiny_model, tmp_path)
    third = again.prefixes.find("", ids, 39).nodes[2]
    os.unlink(again.prefixes.disk.folder / f"{third.key}{SUFFIX}")
    output = again.generate([ids], GREEDY)[0]
    assert output.cached_tokens == 16
    assert output.token_ids == Engine(tiny_model).generate([ids], GREEDY)[0].token_ids
    again.check_integrity()


def test_broken_numbers_do_not_stay_on_disk(tmp_path, make_model):
    model, bad = make_model(), 77
    engine = open_engine(model, tmp_path)
    with torch.no_grad():
        model.model.embed_tokens.weight[bad] = float("nan")
    assert engine.generate([[*prompt(20), bad, 5]], GREEDY)[0].finish_reason == "error"
    engine.prefixes.disk.close()
    assert len(Disk(tmp_path, "model", 1 << 20)) == 0


CHILD = """
import sys
import torch
import leanseek.engine.engine as module
module.BLOCK_TOKENS = 8
from leanseek.checkpoint.directory import load_model
from leanseek.engine.disk import Disk
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
model = load_model(sys.argv[1])
engine = Engine(model, cache_bytes=1 << 20, disk=Disk(sys.argv[2], "model", 1 << 30))
number = 0
while True:
    ids = torch.randint(3, 320, (30,), generator=torch.Generator().manual_seed(1000 + number % 50)).tolist()
    engine.generate([ids], SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True))
    number += 1
    print(number, flush=True)
"""


def test_killed_at_any_moment_it_starts_again_with_whole_blocks(tmp_path, tiny_model):
    from leanseek.checkpoint.directory import save_model

    save_model(tiny_model, tmp_path / "model")
    command = [sys.executable, "-c", CHILD, str(tmp_path / "model"), str(tmp_path / "cache")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= 12:
                break
        time.sleep(0.05)
        child.kill()
    engine = open_engine(tiny_model, tmp_path / "cache", blocks=200)
    assert engine.prefixes.disk.damaged == 0 and len(engine.prefixes.disk) > 0
    hits = 0
    for number in range(12):
        output = engine.generate([prompt(30, number)], replace(GREEDY))[0]
        hits += output.cached_tokens
        assert output.token_ids == Engine(tiny_model).generate([prompt(30, number)], GREEDY)[0].token_ids
    assert hits > 0 and engine.prefixes.disk.damaged == 0
