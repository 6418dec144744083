from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from leanseek.checkpoint.directory import save_model
from leanseek.cli import plan as command
from leanseek.cli.app import main
from leanseek.cost.calibration import load_this
from leanseek.cost.hardware import hardware
from leanseek.cost.rates import load_rates, save_rates
from tests.cost.measured import RATES

V3 = ("deepseek-v3", "--on", "2048xh800")
STATED = ("--tokens", "14.8T", "--layout", "pp=16,ep=64,schedule=dualpipe")


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def shown(capsys, *tokens: str) -> str:
    assert main(["plan", *tokens]) == 0
    return capsys.readouterr().out


def test_training_is_planned(capsys):
    found = json.loads(shown(capsys, *V3, *STATED, "--json", "--grid", "china"))
    assert 2.4e6 < found["device_hours"] < 2.93e6 and found["usd"] == pytest.approx(2 * found["device_hours"])
    assert found["carbon_g"] == pytest.approx(found["joules"] / 3.6e6 * 582) and found["fits"]
    assert found["devices"] == 2048 and found["batch_texts"] == 15360 and found["others"] == []
    assert found["meter"].startswith("700 W a device")
    page = shown(capsys, *V3, *STATED, "--grid", "china")
    for words in (
        "2,048 x NVIDIA H800",
        "14.8T tokens, 15,360 x 4,096 a step",
        "schedule=dualpipe",
        "% causal",
        "bubble",
    ):
        assert words in page
    assert "582 g a kWh" in page and "other layouts" not in page and "calibrated on one run" in page


def test_the_best_says_why_the_others_lose(capsys):
    page = shown(capsys, *V3, "--tokens", "14.8T", "--best")
    assert "why not" in page and "does not fit" in page and "more of " in page
    page = shown(capsys, *V3, "--tokens", "14.8T", "--best", "--layout", "pp=16,ep=8,schedule=zb1p")
    assert "layout  pp=16,ep=8" in page and "the best that was found" in page
    found = json.loads(shown(capsys, *V3, "--tokens", "14.8T", "--best", "--json"))
    assert all(one["why"] and one["step_s"] for one in found["others"])


def test_a_layout_that_does_not_fit_says_by_how_much(capsys):
    page = shown(capsys, "deepseek-v3", "--on", "64xh800", "--tokens", "1T", "--layout", "pp=8,ep=8,schedule=1f1b")
    assert "too many, it does not fit" in page and "nearest that fits" in page
    found = json.loads(shown(capsys, *V3, "--tokens", "1T", "--layout", "pp=8,ep=64,micro=2", "--json"))
    assert not found["fits"] and found["nearest_that_fits"]["layout"] != found["layout"]


def test_serving_is_planned(capsys):
    tokens = ("deepseek-v3", "--on", "176xh800", "--serve", "--speed", "21")
    found = json.loads(shown(capsys, *tokens, "--json"))
    assert found["chosen"]["user_tokens_per_s"] >= 21 and found["decode_ep"] == 144 and found["prefill_ep"] == 32
    page = shown(capsys, *tokens)
    assert page.count("chosen") == 1 and "$ a million" in page and "50.0% of the time" in page
    assert shown(capsys, "laptop", "--on", "2xvirtual-cpu", "--serve", "--prompt", "30", "--reply", "60")


def test_serving_says_carbon(capsys):
    tokens = ("deepseek-v3", "--on", "176xh800", "--serve", "--speed", "21", "--grid", "france")
    found, page = json.loads(shown(capsys, *tokens, "--json")), shown(capsys, *tokens)
    joules = 1e6 * found["chosen"]["joules_per_token"]
    assert found["grid"] == "france" and found["chosen_carbon_g_per_million"] == pytest.approx(joules / 3.6e6 * 56)
    assert found["prefill_carbon_g_per_million"] > 0 and page.count("g (france)") == 2
    assert "700 W a device" in page and found["meter"] in page


def test_a_recipe_for_gpus_has_its_pretraining_planned(capsys, tmp_path):
    path = tmp_path / "plan.html"
    found = json.loads(shown(capsys, "v3-671b-2048xh800", "--json", "--html", str(path)))
    assert found["devices"] == 2048 and found["batch_texts"] == 15360 and found["fits"]
    assert found["layout"].startswith("pp=16,ep=64") and "dualpipev" in found["layout"]
    # The recipe's price is that of all machines.
    assert found["usd"] == pytest.approx(found["device_hours"] * 4096 / 2048) and path.is_file()
    other = json.loads(shown(capsys, "v3-671b-2048xh800", "--json", "--layout", "pp=8,ep=64,schedule=1f1b"))
    assert other["layout"].startswith("pp=8,ep=64") and "bf16" in other["layout"]
    assert "1 x NVIDIA H100" in shown(capsys, "one-gpu")


def test_reinforcement_learning_is_planned(capsys):
    tokens = (
        "one-gpu",
        "--on",
        "8xh100",
        "--rl",
        "--steps",
        "100",
        "--reply",
        "300",
        "--longest",
        "800",
        "--batch",
        "8",
    )
    found = json.loads(shown(capsys, *tokens, "--json"))
    assert found["rounds"] == 100 and found["hours"] > 0 and found["round_s"] > 0
    assert "sampling" in shown(capsys, *tokens)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ((), "a model and machines are needed"),
        (("deepseek-v3", "--tokens", "1T"), "a model and machines are needed"),
        (V3, "--tokens is needed"),
        ((*V3, "--tokens", "lots"), "is not a count"),
        ((*V3, "--tokens", "1T", "--price", "cheap"), "is not a price"),
        (("deepseek-v3", "--on", "8xh8000", "--tokens", "1T"), "did you mean h800"),
        (("deepseek-v3", "--on", "0xh800", "--tokens", "1T"), "at least one device"),
        (("deepseek-v3", "--on", "h800x8", "--tokens", "1T"), "did you mean h800"),
        (("deepseek-v3", "--on", "8xh800", "--tokens", "14.8Q"), "14.8Q"),
        (("deepseek-v3", "--on", "8xh800", "--tokens=-1T"), "-1T"),
        ((*V3, *STATED, "--price", "two/h"), "$2/h"),
        ((*V3, *STATED, "--grid", "frnce"), "did you mean france"),
        (("deepseek-v33", "--on", "h800", "--tokens", "1T"), "did you mean deepseek-v3"),
        (("deepseek-v3", "--on", "8xh200", "--tokens", "1T"), "no layout fits"),
        (("laptop", "--on", "this", "--tokens", "1M"), "--calibrate"),
        (("laptop",), "--calibrate"),
        (("laptop", "--html", "plan.html"), "--html, --best and --layout go with --on"),
        (("laptop", "--best"), "--html, --best and --layout go with --on"),
        ((*V3, "--serve", "--decode-ep", "4096"), "from 1 to 256 devices"),
        (("deepseek-v3", "--on", "8xh800", "--serve"), "leave no room"),
    ],
)
def test_wrong_usage_is_told(capsys, tokens, said):
    assert main(["plan", *tokens]) in (1, 2)
    assert said in capsys.readouterr().err


def test_this_machine_is_measured_once_and_then_known(settings, capsys, monkeypatch):
    row = replace(hardware("virtual-cpu"), name="this", title="this machine", measured=True)
    monkeypatch.setattr(command, "measure", lambda: row)
    monkeypatch.setattr(command, "measured_rates", lambda on_progress: RATES)
    assert str(settings) in shown(capsys, "--calibrate")
    assert load_this() == row and load_rates() == RATES
    assert "1 x this machine" in shown(capsys, "laptop", "--on", "this", "--tokens", "1M")


def test_a_run_stands_for_its_newest_checkpoint_and_small_models_are_warned_of(make_run, tiny_model, capsys):
    run = make_run()
    save_model(tiny_model, run.checkpoint("sft", 2))
    page = shown(capsys, str(run.folder), "--on", "h100", "--tokens", "1M", "--length", "64")
    assert "Gaps between operations are not modelled" in page
    assert "Gaps between" not in shown(capsys, *V3, *STATED)


def test_a_plan_is_drawn(capsys, tmp_path):
    path = tmp_path / "plan.html"
    page = shown(capsys, *V3, *STATED, "--html", str(path))
    assert "14.8T tokens" in page and "deepseek-v3 on 2,048 x NVIDIA H800" in path.read_text(encoding="utf-8")
    shown(capsys, "deepseek-v3", "--on", "176xh800", "--serve", "--html", str(path))
    assert "served on 176 x" in path.read_text(encoding="utf-8")
    small = ("--steps", "9", "--reply", "300", "--longest", "800", "--layout", "zero=1")
    shown(capsys, "one-gpu", "--on", "8xh100", "--rl", *small, "--html", str(path))
    assert "reinforced on 8 x" in path.read_text(encoding="utf-8")


def test_a_recipe_is_planned_stage_by_stage(capsys, make_run):
    assert main(["plan", "laptop"]) == 2 and "leanseek plan --calibrate" in capsys.readouterr().err
    save_rates(RATES)
    page = shown(capsys, "laptop", "--grid", "france")
    for words in ("recipe laptop", "pretrain", "grpo", "eval", "all", "J a token", "7 W, by the power model", "56 g"):
        assert words in page
    found = json.loads(shown(capsys, "laptop", "--json"))
    assert list(found["stages"]) == ["tokenizer", "pretrain", "sft", "grpo", "eval"]
    assert found["totals"]["seconds"] == pytest.approx(sum(one["seconds"] for one in found["stages"].values()))
    assert "pretrain" in shown(capsys, str(make_run().folder))
    assert main(["plan", "nowhere.toml"]) != 0 and "no such recipe file" in capsys.readouterr().err


def test_a_measurement_is_a_row():
    row = command.measure(seconds=0.05)
    assert row.measured and row.bf16_flops > 1e9 and row.memory_bytes_per_s > 1e8 and row.memory_bytes > 1e8
    assert set(row.sources) >= {"bf16_flops", "fp32_flops", "memory_bytes_per_s", "watts"}


def test_an_answer_takes_no_torch():
    code = (
        "import sys; from leanseek.cli.app import main\n"
        f"sys.exit(main(['plan', *{V3!r}, *{STATED!r}]) or 'torch' in sys.modules)"
    )
    # How long it takes, bench/plan.py says: --only answers.
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
