"""The distill stage: from a folder or from specialists, on given replies or the student's own; and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from leanseek import stages
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.cli.app import main
from leanseek.errors import ConfigError
from leanseek.log import RunLog
from leanseek.run import Run
from leanseek.tokens.tokenizer import Tokenizer

FAST = (
    "--env largest --threads 1 --data.sequence_tokens 48 --grpo.max_new_tokens 12 --eval.problems 4 --eval.samples 1 "
    "--eval.max_new_tokens 12 --distill.steps 3 --distill.prompts_per_step 4 --distill.max_new_tokens 12 "
    "--distill.development_problems 2 --distill.batch_sequences 4 --sft.steps 2 --sft.development_problems 2 "
    "--traces.problems 4 --traces.max_new_tokens 12 --traces.samples 2"
).split()
DENSE = {"model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2, "num_nextn_predict_layers": 0}


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(stages, "share_out", lambda threads, device: 1)


@pytest.fixture
def folders(make_model, tiny_tokenizer, tmp_path, monkeypatch):
    """Leave a teacher, a small DeepSeek student and a dense one in the current folder."""
    monkeypatch.chdir(tmp_path)
    save_model(make_model(seed=1), "teacher", tiny_tokenizer)
    save_model(make_model(seed=2, hidden_size=16, num_hidden_layers=2), "small", tiny_tokenizer)
    save_model(make_model(seed=3, **DENSE), "dense", tiny_tokenizer)
    return tmp_path


@pytest.mark.parametrize("student", ["small", "dense"])
def test_on_policy_brings_a_student_nearer(folders, quiet, student):
    words = ["distill", "--teacher", "teacher", "--model", student, "--run", "run", *FAST]
    assert main(words) == 0
    run = Run.open("run")
    assert list(run.recipe.line) == ["distill", "eval"] and run.summary["distill"]["steps"] == 3
    rows = RunLog(run.metrics_path).read("distill")
    assert [row["step"] for row in rows] == [1, 2, 3] and rows[-1]["loss"] < rows[0]["loss"]
    before, after = load_model(student), load_model(run.latest())
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight) and run.summary["distill"]["flops"] > 0
    assert "distillation" in run.report_path.read_text().lower() and main(["distill", "--run", "run"]) == 0


def test_logits_on_worked_solutions(folders, quiet, capsys):
    settings = {"distill.traces_per_environment": "20", "stages.distill.method": "logits"}
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    assert main(["distill", "--teacher", "teacher", "--model", "small", "--run", "run", *FAST, *words]) == 0
    rows = RunLog(Run.open("run").metrics_path).read("distill")
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_another_tokenizer_is_refused_and_the_way_out_told(folders, quiet, capsys):
    other = Tokenizer.train(["other words altogether, and more of them"] * 9, 320)
    other.save("small")
    assert main(["distill", "--teacher", "teacher", "--model", "small", "--run", "run", *FAST]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert "another tokenizer than the student" in said and "--method traces" in said


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--model", "small"], "give --teacher FOLDER"),
        (["--teacher", "teacher"], "give --model FOLDER"),
        (["--teacher", "http://x", "--model", "small"], "a server tells its words"),
        (["--teacher", "teachr", "--model", "small"], "there is no such folder"),
    ],
)
def test_what_is_missing_is_told(folders, capsys, words, complaint):
    assert main(["distill", *words, "--run", "run"]) != 0
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_specialists_become_one_model(make_run, tiny_config, quiet, tmp_path):
    few = {"sft__steps": 2, "grpo__steps": 2, "distill__steps": 2, "distill__max_new_tokens": 12}
    line = {
        "stages__sft__kind": "sft",
        "stages__adder": {"kind": "grpo", "after": "sft", "environments": ["running_total"]},
        "stages__finder": {"kind": "grpo", "after": "sft", "environments": ["largest"]},
        "stages__merged": {"kind": "distill", "after": "sft", "teachers": ["adder", "finder"]},
        "distill__development_problems": 2,
    }
    run = make_run(eval__problems=2, **few, **line)
    stages.make(run)
    assert [run.recipe.before(name) for name in ("adder", "finder", "merged")] == ["sft"] * 3
    rows = RunLog(run.metrics_path).read("merged")
    assert {"correct_running_total", "correct_largest", "heldout_largest"} <= rows[-1].keys()
    assert "correct_largest" not in RunLog(run.metrics_path).read("adder")[0]
    assert run.latest().name == "merged-2" and run.summary["merged"]["teachers"] == 2
    assert json.loads((run.latest() / "config.json").read_text())["hidden_size"] == tiny_config.hidden_size


def test_a_task_that_no_specialist_had_is_told(make_run, quiet):
    line = {
        "stages__sft__kind": "sft",
        "stages__adder": {"kind": "grpo", "after": "sft", "environments": ["running_total"]},
        "stages__merged": {"kind": "distill", "after": "sft", "teachers": ["adder"]},
    }
    run = make_run(sft__steps=1, grpo__steps=1, **line)
    with pytest.raises(ConfigError, match=r"none of its teachers \(adder\) had largest"):
        stages.make(run)


def test_traces_of_a_server_teach_a_student_of_another_tokenizer(folders, quiet, tiny_tokenizer, monkeypatch):
    import leanseek.rl.collect as collect
    from leanseek.engine.request import Output
    from leanseek.evals.attempts import Attempt
    from leanseek.messages import Message

    class Sage:
        shown, model = "https://sage.example/v1", "sage-1"

        def __init__(self, url, settings, environments):
            assert url == "https://sage.example" and settings.at_once == 3

        def reply(self, problems, first):
            return [
                Attempt(
                    problem,
                    [],
                    Message("assistant", str(problem.data["answer"]), f"look {i}"),
                    Output("", 0, [i, i], "", finish_reason="stop"),
                    {},
                    right,
                    True,
                )
                for problem in problems
                for i, right in enumerate((True, False))
            ]

    monkeypatch.setattr(collect, "Endpoint", Sage)
    Tokenizer.train(["other words altogether, and more of them"] * 9, 320).save("small")
    words = "--method traces --traces.at_once 3 --traces.licence".split()
    given = ["--teacher", "https://sage.example", "--model", "small", "--run", "run"]
    assert main(["distill", *given, *words, "MIT, by its terms", *FAST]) == 0
    run = Run.open("run")
    assert list(run.recipe.line) == ["traces", "sft", "eval"] and run.summary["traces"]["kept"] == 4
    (where,) = run.summary["traces"]["provenance"]
    assert where.items() >= {"url": Sage.shown, "model": "sage-1", "licence": "MIT, by its terms"}.items()
    assert where["date"][:4].isdecimal() and where["temperature"] == 1.0
    card = run.card_path.read_text()
    assert "Replies of sage-1 at https://sage.example/v1 were learnt from" in card and "MIT, by its terms" in card


def test_logits_are_of_the_teachers_own_replies_where_they_are_drawn(folders, quiet, monkeypatch):
    import leanseek.rl.collect as collect

    monkeypatch.setattr(collect, "best", lambda attempts, keep, easiest: list(attempts[:keep]))
    words = ["--method", "logits", "--teacher", "teacher", "--model", "small", "--run", "run"]
    assert main(["distill", *words, *FAST]) == 0
    run = Run.open("run")
    assert list(run.recipe.line) == ["traces", "distill", "eval"] and run.summary["traces"]["kept"] == 4
    rows = RunLog(run.metrics_path).read("distill")
    assert rows[-1]["loss"] < rows[0]["loss"]
