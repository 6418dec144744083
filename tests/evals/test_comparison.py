"""The page of several runs: every run's figures are on it, curves in common overlaid, differences told."""

from __future__ import annotations

import json
import re

import pytest

from leanseek.cli.app import main
from leanseek.errors import UsageError
from leanseek.evals.comparison import contents, write_comparison
from leanseek.log import RunLog
from leanseek.run import Run
from leanseek.settings import load_recipe

HOSTILE = "</script><script>alert(1)</script>"


def made(tmp_path, folder: str, share: float, recipe: str = "laptop", **overrides) -> Run:
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    run = Run.create(tmp_path / folder, load_recipe(recipe, values))
    last = list(run.recipe.line)[-2]
    figures = {
        last: share,
        "base": 0.0,
        "n": 50,
        "interval": {last: [share - 0.1, share + 0.1]},
        "pass_at_k": {last: {"1": share, "4": share + 0.05}},
        "sound": {last: 0.5},
        "length": {last: 30 + 100 * share},
    }
    run.update("accuracy", {"largest": figures})
    log = RunLog(run.metrics_path)
    for step in range(1, 9):
        log.log(last, step, reward=share * step / 8, heldout_largest=share, entropy=1 / step)
    return run


def test_runs_stand_side_by_side(tmp_path):
    one = made(tmp_path, "a/run", 0.6)
    other = made(tmp_path, "b/run", 0.8, grpo__steps=7, levels__largest="[3]")
    page = contents([one, other])
    assert [run["label"] for run in page["runs"]] == ["a/run", "b/run"] and all(r["unfinished"] for r in page["runs"])
    (task,) = page["tasks"]
    assert [(bar["label"], bar["text"], bar["colour"]) for bar in task["bars"]] == [
        *(("a/run", "60.0%", "m0"), ("b/run", "80.0%", "m1"))
    ]
    assert [(row["label"], row["model"], row["greedy"]) for row in page["rows"]] == [
        *(("a/run", "pretrained", "0.0%"), ("a/run", "after GRPO", "60.0%")),
        *(("b/run", "pretrained", "0.0%"), ("b/run", "after GRPO", "80.0%")),
    ]
    assert page["tries"] == ["1", "4"] and page["rows"][3]["passes"] == {"1": "80.0%", "4": "85.0%"}
    assert (page["rows"][1]["length"], page["rows"][3]["sound"]) == ("90", "50.0%")
    reward = next(chart for chart in page["data"] if chart["title"] == "GRPO: reward")
    assert [(s["label"], s["colour"], s["values"][-1]) for s in reward["series"]] == [
        *(("a/run: reward", 0, 0.6), ("b/run: reward", 1, 0.8))
    ]
    assert dict(page["settings"]) == {"grpo.steps": ["120", "7"], "levels": ["-", "{'largest': (3,)}"]}


def test_runs_of_different_lines_have_their_last_models_compared(tmp_path, capsys):
    one, other = made(tmp_path, "plain", 0.6), made(tmp_path, "staged", 0.7, recipe="r1-laptop")
    assert main(["report", str(one.folder), str(other.folder)]) == 0
    path = tmp_path / "comparison.html"
    assert capsys.readouterr().out.strip() == str(path)
    page = path.read_text()
    assert "after preferred" in page and "after GRPO" in page and "stages.preferred.rubric" in page
    assert "src=" not in page and len(re.findall(r"<script", page)) == 3


def test_text_cannot_act(tmp_path):
    runs = [made(tmp_path, name, 0.5) for name in ("x", "y")]
    for run in runs:
        run.update("accuracy", {HOSTILE: run.summary["accuracy"]["largest"]})
        RunLog(run.metrics_path).log("grpo", 9, **{f"correct_{HOSTILE}": 0.5})
        RunLog(run.metrics_path).log("grpo", 10, **{f"correct_{HOSTILE}": 0.5})
    text = write_comparison([run.folder for run in runs], tmp_path / "page.html").read_text()
    assert HOSTILE not in text and "alert(1)" in text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert data is not None and HOSTILE in json.dumps(json.loads(data[1]))


def test_what_cannot_be_compared_is_told(tmp_path, capsys):
    run = made(tmp_path, "x", 0.5)
    with pytest.raises(UsageError, match="named twice"):
        write_comparison([run.folder, tmp_path / "." / "x"], tmp_path / "page.html")
    with pytest.raises(UsageError, match="7 runs are too many"):
        write_comparison([tmp_path / str(i) for i in range(7)], tmp_path / "page.html")
    assert main(["report", str(run.folder), "--out", "x.html"]) == 2
    assert main(["report", str(run.folder), str(tmp_path / "none")]) == 1
