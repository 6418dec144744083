"""The report of a whole run, of half a run and of a hostile one: one page, and only its own scripts run in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from leanseek.errors import RunError
from leanseek.evals.report import write_report
from leanseek.run import Run
from leanseek.settings import Recipe

STAGES = ("tokenizer", "pretrain", "sft", "grpo", "eval")
HOSTILE = """</script><script>alert("x")</script><img src=x onerror=alert(1)>'\"&\u2028"""


class Page(HTMLParser):
    """What a browser sees: texts, scripts, and every tag with its attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside: str | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else None
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = None
        self.text += " "

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside is None:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def write_lines(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sample(stage: str, **changes) -> dict:
    row = {
        "stage": stage,
        "environment": "largest",
        "level": 3,
        "prompt": "a 9 b 4",
        "reasoning": "9 > 4",
        "answer": "9",
        "gold": "9",
        "correct": True,
        "sound": True,
    }
    return {**row, **changes}


def ledger_row(stage: str, **changes) -> dict:
    row = {
        "stage": stage,
        "tokens": 1000,
        "flops": 2e9,
        "seconds": 30.0,
        "joules": 200.0,
        "meter": "estimated:virtual-cpu",
        "usd": 0.001,
        "peak_memory_bytes": 1_200_000_000,
    }
    return {**row, **changes}


def whole_run(folder: Path, done=STAGES, **recipe) -> Run:
    run = Run.create(folder, Recipe(**{"name": "tiny", "environments": ("largest",), **recipe}))
    write_lines(
        run.metrics_path,
        [{"stage": "pretrain", "step": s, "loss": 5 - s / 10} for s in range(1, 9)]
        + [{"stage": "grpo", "step": s, "reward": s / 10, "logprob_gap": 1e-6 * s} for s in range(1, 9)],
    )
    write_lines(run.ledger_path, [ledger_row(stage) for stage in (*done, done[-1])])
    for stage in done:
        run.finish(stage, {"bits_per_byte": 0.4321})
    run.update("model", {"name": "laptop", "parameters": 1_316_880, "active_parameters": 727_056})
    run.update("machine", {"processor": "AMD EPYC", "cores": 2, "device": "cpu", "leanseek": "0.1.0", "commit": None})
    return run


def evaluated(run: Run) -> Run:
    interval = {"base": [0.0, 0.02], "sft": [0.37, 0.45], "grpo": [0.69, 0.77]}
    figures = {"base": 0.01, "sft": 0.41, "grpo": 0.73, "n": 512, "interval": interval}
    further = {"pass_at_k": {"grpo": {"1": 0.7, "4": 0.85}}, "sound": {"grpo": 0.97}}
    run.update("accuracy", {"largest": {**figures, **further}})
    run.update("mtp", {"acceptance": 0.83})
    write_lines(
        run.samples_path,
        [
            sample("grpo"),
            sample("base", reasoning=None, answer="", correct=False, sound=None),
            sample("sft", answer="4", correct=False, sound=None),
        ],
    )
    return run


def test_a_whole_run(tmp_path):
    path = write_report(evaluated(whole_run(tmp_path / "run")).folder)
    assert path == tmp_path / "run" / "report.html"
    page = Page(path)
    for words in (
        "Reinforcement learning lifted largest from 41% to 73%",
        "on 2 cores of AMD EPYC",
        "3 min of time",
        "0.33 Wh of energy, estimated",
        "1.3M parameters, 727k used per token",
        "+32 points largest 512 problems",
        "73.0%",
        "solved in 1 try 70.0%, 4 tries 85.0%",
        "97.0% of the right answers",
        "83.0% of the MTP layer's guesses",
        "8.0e-06 largest gap",
        "Pretraining: loss",
        "Evaluation 1 min 33.3%",
        "all 3 min 100% 6k 12 GFLOP",
        "3.5 W for a busy core",
        "[grpo.optimiser]",
    ):
        assert words in page.words
    assert "not finished" not in page.words
    assert 'style="left:69.00%;width:8.00%"' in path.read_text()


def test_samples_stand_side_by_side_with_their_marks(tmp_path):
    page = Page(write_report(evaluated(whole_run(tmp_path / "run")).folder))
    marks = re.findall(r"(pretrained|after SFT|after GRPO) (✓ right|✗ wrong) (\S+)", page.words)
    assert marks == [
        ("pretrained", "✗ wrong", "(no"),
        ("after SFT", "✗ wrong", "9"),
        ("after GRPO", "✓ right", "9"),
    ]
    assert page.words.count("a 9 b 4") == 1


def test_the_right_answer_by_wrong_thinking_is_marked(tmp_path):
    run = whole_run(tmp_path / "run")
    write_lines(run.samples_path, [sample("grpo", sound=False)])
    assert "a line of the thinking is not" in Page(write_report(run.folder)).words


@pytest.mark.parametrize("done", [(), ("tokenizer",), ("tokenizer", "pretrain", "sft")])
def test_half_a_run(tmp_path, done):
    run = whole_run(tmp_path / "run", done or ("tokenizer",))
    if not done:
        for name in ("summary.json", "metrics.jsonl", "ledger.jsonl"):
            (run.folder / name).unlink()
    page = Page(write_report(run.folder))
    assert "This run is not finished" in page.words
    assert "not been evaluated yet" in page.words
    assert ("No stage is done yet" in page.words) == (not done)
    assert ("Nothing has been charged yet" in page.words) == (not done)
    assert "None" not in page.words.split("The recipe")[0]
    assert "leanseek make --run run --resume" in page.words


def test_damaged_files_do_not_stop_the_report(tmp_path):
    run = evaluated(whole_run(tmp_path / "run"))
    for path in (run.metrics_path, run.ledger_path, run.samples_path):
        with path.open("a") as file:
            file.write('[1, 2]\n{"stage": "sft"}\n{"stage": "gr')
    assert "73.0%" in Page(write_report(run.folder)).words


def test_the_same_problems_are_shown_from_early_to_late(tmp_path):
    run = whole_run(tmp_path / "run")
    rows = [sample("grpo", look=look, answer=f"try {look}", prompt="which?") for look in (3, 1, 2, 4, 5)]
    write_lines(run.watched_path, [*rows, sample("grpo", look=1, prompt="seen once"), sample("sft", look="x")])
    words = Page(write_report(run.folder)).words
    assert "From early to late" in words and "seen once" not in words
    assert [f"try {look}" in words for look in range(1, 6)] == [True, False, True, False, True]
    assert "look 1 of 5" in words and "look 5 of 5" in words


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"recipe\.toml"):
        write_report(tmp_path)


def test_text_of_the_model_cannot_act(tmp_path):
    run = evaluated(whole_run(tmp_path / "run", name=HOSTILE))
    write_lines(
        run.samples_path,
        [sample("grpo", prompt=HOSTILE, reasoning=HOSTILE, answer=HOSTILE, gold=HOSTILE, environment=HOSTILE)],
    )
    write_lines(
        run.metrics_path, [{"stage": "grpo", "step": s, f"heldout_{HOSTILE}": 0.5, "loss": 1} for s in range(3)]
    )
    write_lines(run.ledger_path, [ledger_row(HOSTILE, meter=HOSTILE)])
    path = write_report(run.folder)
    page = Page(path)
    assert 'alert("x")' in page.text, "it is shown as it is"
    assert len(page.scripts) == 3
    assert not any("alert" in script for script in page.scripts[1:])
    assert json.loads(page.scripts[0])[0]["series"][0]["label"] == HOSTILE
    assert not any(tag == "img" or any(name.startswith("on") for name in attributes) for tag, attributes in page.tags)


def test_only_its_own_scripts_may_run_and_nothing_is_loaded(tmp_path):
    path = write_report(whole_run(tmp_path / "run").folder)
    page = Page(path)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts[1:]]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    assert not any({"src", "href"} & attributes.keys() for _, attributes in page.tags)
    assert path.stat().st_size < 400_000


def test_what_is_vendored_is_as_published():
    vendor = resources.files("leanseek.evals") / "web" / "vendor"
    pinned = dict(reversed(line.split()) for line in (vendor / "SHA256SUMS").read_text().splitlines())
    files = {file.name for file in vendor.iterdir()} - {"README.md", "SHA256SUMS"}
    assert files == set(pinned)
    for name, digest in pinned.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest


@pytest.mark.browser
def test_a_browser_draws_the_charts(tmp_path):
    path = write_report(evaluated(whole_run(tmp_path / "run")).folder)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    page = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert page.count("<canvas") == 3
    # The legend shows where each curve ended.
    assert re.search(r"reward.*?u-value\">0\.8<", page)


def test_a_run_on_ones_own_data_says_what_it_learnt(tmp_path):
    """No tasks, so nothing is to be evaluated: the page is of what it starts from and of what was kept aside."""
    stages = {"sft": {}, "dpo": {"after": "sft"}}
    start = {"grpo": {"start": "models/given"}, "dpo": {"data": "pairs.jsonl"}, "stages": stages, "environments": ()}
    run = Run.create(tmp_path / "run", Recipe(**{"name": "mine", **start}))
    before = {"before": {"validation_loss": 2.5}, "validation_loss": 1.25}
    run.finish("sft", {**before, "best": {"step": 40, "validation_loss": 1.2}})
    run.finish("dpo", {"validation_preferred": 0.875})
    rows = [{"stage": "dpo", "step": step, "preferred": 0.5 + step / 10} for step in (1, 2)]
    write_lines(run.metrics_path, rows)
    page = Page(write_report(run.folder))
    assert "The model given , trained further" in page.words and "made from nothing" not in page.words
    assert "2.500 → 1.250 nats a token" in page.words and "87.5% of unseen pairs" in page.words
    assert "40 step with the lowest validation loss" in page.words and "pairs told apart" in page.words
    assert "not finished" not in page.words and "What it can" not in page.words


def test_the_loads_of_experts_are_a_heat_map(tmp_path):
    run = whole_run(tmp_path / "run")
    loads = [[[1.0, 1.5, 0.5, 1.0], [1.0, 1.0, 1.0, 1.0]], [[1.0, 1.25, 0.75, 1.0], [3.0, 0.0, 0.0, 1.0]]]
    rows = [{"stage": "pretrain", "step": 6 * n, "expert_load": load} for n, load in enumerate(loads, 1)]
    write_lines(run.metrics_path, rows)
    page = Page(write_report(run.folder))
    assert "Steps 6 to 12, one row an expert. Busiest at the end: 3.00 (MoE layer 2, expert 1)." in page.words
    drawn = {(one["x"], one["y"]): (one["class"], one["opacity"]) for tag, one in page.tags if tag == "rect"}
    assert drawn == {
        ("0", "1"): ("over", "0.5"),
        ("0", "2"): ("under", "0.5"),
        ("1", "1"): ("over", "0.25"),
        ("1", "2"): ("under", "0.25"),
        ("1", "5"): ("over", "1.0"),  # a row is left empty between layers, and all from twice the mean on is one colour
        ("1", "6"): ("under", "1.0"),
        ("1", "7"): ("under", "1.0"),
    }


def test_many_experts_show_each_layers_busiest(tmp_path):
    run = whole_run(tmp_path / "run")
    layer = [1.0] * 99 + [2.0]
    rows = [{"stage": "pretrain", "step": n, "expert_load": [layer, layer, [1.0] * 100]} for n in (1, 2)]
    write_lines(run.metrics_path, [*rows, {"stage": "pretrain", "step": 3, "expert_load": "damaged"}])
    page = Page(write_report(run.folder))
    assert "the busiest expert of each layer. Busiest at the end: 2.00 (MoE layer 1)" in page.words
    assert sum(tag == "rect" for tag, _ in page.tags) == 4


def test_films_are_in_the_page_early_ones_first(tmp_path):
    run = evaluated(whole_run(tmp_path / "run"))
    assert "Watch it" not in Page(write_report(run.folder)).words
    run.films_folder.mkdir()
    for model, pictures in (("grpo", b"late"), ("sft", b"early"), ("nobody", b"of no model")):
        (run.films_folder / f"battery_swap-{model}.webp").write_bytes(pictures)
    page = Page(write_report(run.folder))
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert images == ["data:image/webp;base64," + base64.b64encode(one).decode() for one in (b"early", b"late")]
    assert "Watch it" in page.words
