from __future__ import annotations

import csv
import io
import json

import pytest

from leanseek.cli.app import main
from leanseek.cost.chain import append_sealed


def row(stage: str, seconds: float, **more) -> dict:
    return {
        "stage": stage,
        "tokens": 1000,
        "flops": 2e9,
        "seconds": seconds,
        "joules": 10 * seconds,
        "meter": "estimated:virtual-cpu",
        "usd": seconds / 1e4,
        "peak_memory_bytes": 5e8,
        **more,
    }


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, factor in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        append_sealed(
            tmp_path / name / "ledger.jsonl",
            row("pretrain", 30 * factor, forward_flops=5e8, flops_by_part={"experts": 1e9}, storage_read_bytes=4096,
                storage_written_bytes=0, seconds_by_part={"learning": 20 * factor}),
        )  # fmt: skip
        append_sealed(tmp_path / name / "ledger.jsonl", row("sft", 10))
    return tmp_path


def shown(capsys, *tokens: str) -> str:
    assert main(["ledger", *tokens]) == 0
    return capsys.readouterr().out


def test_a_run_is_told_stage_by_stage(runs, capsys):
    page = shown(capsys, "one", "--grid", "france")
    for words in ("pretrain  30.0 s", "all       40.0 s", "300 J", "0.3 J", "56 g for a kilowatt-hour", "3.5 W for a"):
        assert words in page
    assert "forward 12.5%, experts 25.0%" in page and "4.1 kB read" in page
    head = json.loads((runs / "one" / "ledger.jsonl").read_text().splitlines()[-1])["hash"]
    assert f"2 of 2 lines have one; the last hash is {head}" in page
    assert shown(capsys, "one/ledger.jsonl", "--expect", head)


def test_a_plan_stands_beside_what_was(runs, capsys):
    plan = {"pretrain": {"seconds": 33.0, "tokens": 900}, "grpo": {"seconds": 5.0}, "sft": None}
    (runs / "one" / "summary.json").write_text(json.dumps({"plan": plan}))
    page = shown(capsys, "one")
    (line,) = [line for line in page.partition("as planned")[2].splitlines() if line.startswith("pretrain")]
    assert line.split() == ["pretrain", "33.0", "s", "30.0", "s", "+10%", "900", "1k"]
    found = json.loads(shown(capsys, "one", "two", "--json"))
    assert found["one"]["planned"]["pretrain"]["seconds"] == 33 and found["two"]["planned"] == {}
    plan["pretrain"]["parts"] = {"learning": 30.0, "looks": 3.0}
    (runs / "one" / "summary.json").write_text(json.dumps({"plan": plan}))
    assert ["learning", "30.0", "s", "20.0", "s", "+50%"] in [
        line.split() for line in shown(capsys, "one").splitlines()
    ]
    (runs / "one" / "summary.json").write_text("damaged")
    assert "as planned" not in shown(capsys, "one")


def test_runs_are_compared(runs, capsys):
    page = shown(capsys, "one", "two", "--compare")
    assert [line.split()[-1] for line in page.splitlines() if line.startswith("pretrain")] == ["1.00", "2.00"]
    assert [line.split()[-1] for line in page.splitlines() if line.startswith("all")] == ["1.00", "1.75"]


def test_csv_has_every_row_and_json_the_sums(runs, capsys):
    rows = list(csv.DictReader(io.StringIO(shown(capsys, "one", "two", "--csv"))))
    assert [(one["run"], one["stage"], float(one["seconds"])) for one in rows] == [
        ("one", "pretrain", 30),
        ("one", "sft", 10),
        ("two", "pretrain", 60),
        ("two", "sft", 10),
    ]
    found = json.loads(shown(capsys, "one", "--json", "--grid", "360"))["one"]
    assert found["sums"]["totals"]["carbon_g"] == pytest.approx(sum(one["carbon_g"] for one in found["rows"]))
    assert found["sealed"] == 2 and found["broken_lines"] == [] and found["sums"]["totals"]["seconds"] == 40


def test_a_changed_ledger_is_shown_and_fails(runs, capsys):
    path = runs / "one" / "ledger.jsonl"
    path.write_text(path.read_text().replace('"joules": 300', '"joules": 3'))
    assert main(["ledger", "one"]) == 1
    printed = capsys.readouterr()
    assert "pretrain" in printed.out and "one: line 1 does not fit its seal" in printed.err


def test_a_torn_line_is_told_and_missing_lines_need_the_hash(runs, capsys):
    path = runs / "one" / "ledger.jsonl"
    path.write_text(path.read_text()[:-20])
    assert main(["ledger", "one"]) == 0
    assert "line 2 was cut off" in capsys.readouterr().err
    assert main(["ledger", "one", "--expect", "abc"]) == 1
    assert "lines at the end are missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([], "name run folders"),
        (["three"], "there is no ledger"),
        (["one", "--csv", "--json"], "exclude one another"),
        (["one", "two", "--expect", "x"], "name one run"),
        (["one", "--grid", "frence"], "did you mean france?"),
    ],
)
def test_wrong_usage_is_told(runs, capsys, tokens, said):
    assert main(["ledger", *tokens]) in (1, 2)
    assert said in capsys.readouterr().err


def test_an_old_ledger_without_seals_is_read(runs, capsys):
    (runs / "one" / "ledger.jsonl").write_text(json.dumps(row("sft", 5)) + "\n")
    assert "0 of 1 lines have one" in shown(capsys, "one")
