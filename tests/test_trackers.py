"""Trackers: what each of them keeps is read back by its own means; on this machine, and never the end of a run."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from leanseek import trackers
from leanseek.errors import ConfigError
from leanseek.log import RunLog
from leanseek.sections.account import TrackSettings
from leanseek.settings import load_recipe
from leanseek.trackers import check_trackers, open_trackers

ROWS = [("pretrain", 1, 3.0), ("pretrain", 2, 2.5), ("sft", 1, 1.5)]


def tracked(folder, *names):
    """Log some rows, one of which holds what is no number, and close."""
    log = RunLog(folder / "metrics.jsonl", trackers=open_trackers(folder, TrackSettings(to=names)))
    for stage, step, loss in ROWS:
        log.log(stage, step, loss=loss, expert_load=[[1.0]], odd=math.nan)
    log.close()
    return log


def test_event_files_have_the_rows_of_each_stage(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def losses(stage: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(tmp_path / "tensorboard" / stage)).Reload()
        assert events.Tags()["scalars"] == ["loss"]
        return [(event.step, event.value) for event in events.Scalars("loss")]

    tracked(tmp_path, "tensorboard")
    assert losses("pretrain") == [(1, 3.0), (2, 2.5)] and losses("sft") == [(1, 1.5)]
    again = RunLog(tmp_path / "metrics.jsonl", trackers=open_trackers(tmp_path, TrackSettings(to=("tensorboard",))))
    again.log("pretrain", 2, loss=2.0)
    again.close()
    assert losses("pretrain") == [(1, 3.0), (2, 2.0)], "a run that goes on takes back what it does anew"


def records(data: bytes) -> Iterator[bytes]:
    """Yield the records of wandb's file: LevelDB's log format after seven bytes, chunks in blocks of 32 KiB."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32_768 - at % 32_768 < 7:  # no header fits into what is left of the block
            at += 32_768 - at % 32_768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or the end of one
            yield whole
            whole = b""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs wandb")
def test_wandb_keeps_the_rows_in_the_run_folder(tmp_path):
    from wandb.proto import wandb_internal_pb2

    tracked(tmp_path, "wandb")
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows, kinds, until_s = [], set[str](), time.monotonic() + 30
    while "exit" not in kinds and time.monotonic() < until_s:  # its service writes on for a moment
        rows, kinds = [], set()
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kinds.add(record.WhichOneof("record_type"))
            if record.HasField("history"):
                items = {"/".join(one.nested_key) or one.key: one.value_json for one in record.history.item}
                rows.append({name: json.loads(text) for name, text in items.items() if not name.startswith("_")})
    assert rows == [{f"{stage}/loss": loss, f"{stage}/step": step} for stage, step, loss in ROWS]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="needs trackio")
def test_trackio_keeps_the_rows_in_its_database(tmp_path):
    """In a process of its own: trackio decides where its database lies when it is imported."""
    code = (
        "import sys; from pathlib import Path; from tests.test_trackers import tracked\n"
        f"tracked(Path({str(tmp_path / 'mine')!r}), 'trackio')\n"
        "from trackio.sqlite_storage import SQLiteStorage as S\n"
        "import json; print(json.dumps(S.get_logs('leanseek', 'mine')))"
    )
    known = {"TRACKIO_DIR": str(tmp_path / "database"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=known | {"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)  # and nothing else went to standard output
    found = [{name: row[name] for name in row if "/" in name} for row in rows]
    assert found == [{f"{stage}/loss": loss, f"{stage}/step": step} for stage, step, loss in ROWS]


def test_a_tracker_that_fails_is_told_and_left_out(tmp_path, monkeypatch, capsys):
    class Failing:
        told = 0

        def __init__(self, folder, settings) -> None:
            pass

        def log(self, stage, step, values) -> None:
            Failing.told += 1
            raise OSError("no room")

        def close(self) -> None:
            raise AssertionError("it was left out")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", Failing)
    monkeypatch.setattr(trackers, "check_trackers", lambda settings: None)
    log = tracked(tmp_path, "wandb")
    assert Failing.told == 1 and len(log.read()) == 3
    assert "warning: wandb is told no more (OSError: no room); metrics.jsonl has all rows" in capsys.readouterr().err


def test_what_is_lacking_is_told_before_any_work(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"track.to has 'wandb', .* pip install 'leanseek\[wandb\]'"):
        check_trackers(TrackSettings(to=("wandb",)))
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with pytest.raises(ConfigError, match=r"track.online with trackio needs track.space"):
        check_trackers(TrackSettings(to=("trackio",), online=True))
    with pytest.raises(ConfigError, match=r"track\.to"):
        load_recipe("laptop", {"track.to": ["wandbb"]})
