"""The guide to a reasoner of one's own, followed from its first line to its last on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from leanseek import stages
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.cli.app import main
from leanseek.run import Run
from leanseek.server.listener import Listener
from leanseek.tokens.tokenizer import Tokenizer

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
# In place of minutes: fewer and shorter replies.
FAST = {
    "grpo": "--sft.steps 70 --sft.traces_per_environment 1000 --sft.batch_sequences 16 --sft.hasty 0.0"
    " --sft.optimiser.lr 0.02 --sft.optimiser.adamw_lr 0.01 --sft.validate_every 70 --sft.development_problems 4"
    " --train.steps 3 --train.prompts_per_step 8 --train.max_new_tokens 24 --train.development_problems 16"
    " --data.sequence_tokens 40 --threads 1",
    "eval": "--problems 96 --samples 4 --max-new-tokens 24 --json",
}


@pytest.fixture
def guide(root: Path) -> str:
    return (root / "docs" / "guides" / "your-own-reasoner.md").read_text(encoding="utf-8")


def commands(guide: str) -> list[list[str]]:
    """Return the guide's command lines without `python -m leanseek`."""
    lines = [
        line for kind, body in FENCE.findall(guide) if kind == "sh" for line in body.replace("\\\n", " ").splitlines()
    ]
    found = [shlex.split(line) for line in lines]
    assert all(words[:3] == ["python", "-m", "leanseek"] for words in found)
    return [words[3:] for words in found]


def python(guide: str, holding: str) -> str:
    (only,) = [body for kind, body in FENCE.findall(guide) if kind == "python" and holding in body]
    return only


@pytest.fixture
def place(tmp_path, monkeypatch, guide, make_model, tiny_tokenizer) -> Path:
    """Return a folder with the guide's task and a model where it expects the laptop's."""
    (tmp_path / "mytasks").mkdir()
    (tmp_path / "mytasks" / "digit_sum.py").write_text(python(guide, "class DigitSum"), encoding="utf-8")
    model = make_model(initializer_range=0.05)
    save_model(model, tmp_path / "runs" / "laptop", tiny_tokenizer)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(stages, "share_out", lambda threads, device: threads or 1)
    yield tmp_path
    for name in ("mytasks", "mytasks.digit_sum"):
        sys.modules.pop(name, None)


def test_the_task_is_as_short_as_promised(guide):
    assert len(python(guide, "class DigitSum").splitlines()) <= 40


def test_the_guide_leads_to_a_better_model_that_answers(guide, place, capsys):
    solved, said = [], ""
    for words in commands(guide):
        name = words[0]
        if name == "serve" or "qwen3-0.6b" in words:
            continue
        words = [word for word in words if name != "eval" or word not in ("--problems", "200")]
        begins = name != "grpo" or "--model" in words
        assert main([*words, *(FAST.get(name, "").split() if begins else [])]) == 0, words
        out = capsys.readouterr()
        said += out.err
        if name == "eval":
            solved.append(json.loads(out.out)["tasks"][0]["pass_at_k"]["4"])
    before, after = solved
    assert before == 0.0, "it began with a model that had never seen a conversation"
    assert after > 0.05
    assert re.search(r"digit_sum: [\d.]+% before, [\d.]+% after, of 16 problems", said)
    run = Run.open("runs/digits")
    assert run.stage_done("sft") and run.stage_done("grpo") and not run.stage_begun("pretrain")
    assert run.summary["grpo"]["logprob_gap"] < 1e-4
    begun, served = load_model("runs/laptop"), load_model(run.latest())
    assert any(not torch.equal(p, served.get_parameter(n)) for n, p in begun.named_parameters())
    assert Tokenizer.load(run.latest()).vocab_size == Tokenizer.load("runs/laptop").vocab_size
    listener = Listener.of_folder(run.latest(), name="digits", port=0)
    with listener.background():
        text = python(guide, "from openai import OpenAI").replace("http://127.0.0.1:8000", listener.url)
        assert listener.url in text
        exec(compile(text, "your-own-reasoner.md", "exec"), {})
    assert "->" in capsys.readouterr().out
