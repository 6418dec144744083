"""Runs that start from a model folder: every family, in full and by low-rank updates, to the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from leanseek import stages
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.errors import CheckpointError
from leanseek.messages import Message
from leanseek.run import Run
from leanseek.settings import load_recipe

FAMILIES = {
    "v2": {"model_type": "deepseek_v2", "n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy"},
    "v3": {},
    "v3.2": {"model_type": "deepseek_v32", "q_lora_rank": 6, "index_n_heads": 2, "index_head_dim": 6, "index_topk": 8},
    "qwen": {"model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2},
    "llama": {"model_type": "llama", "attention_bias": True, "tie_word_embeddings": True},
}
TASK = '''
import random
from leanseek.envs.environment import Environment, Episode, Problem, Turn
from leanseek.messages import Message

class Anything(Episode):
    def step(self, reply):
        said = reply.content + (reply.reasoning_content or "")
        return Turn((), True, {"correct": float(len(said) % 2 == 0), "format": 1.0})

class Lenient(Environment):
    """Say something of even length."""
    name = "lenient"
    description = "say something of even length"
    levels = (1, 2)
    def draw(self, level, rng):
        prompt = str(rng.randrange(10**level, 10 ** (level + 1)))
        return Problem(self.name, level, prompt, {"answer": 0}, prompt)
    def solution(self, problem, rng):
        return Message("assistant", "ab", "cd")
    def check(self, problem, answer):
        return True
    def audit(self, problem, reasoning):
        return True
    def start(self, problem):
        return Anything(self, problem)
'''


@pytest.fixture
def make_started(tmp_path: Path, monkeypatch, make_model, tiny_tokenizer):
    """Return a function that makes a run which starts from a folder of a family, on a task of its own."""
    (tmp_path / "evenness.py").write_text(TASK)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "evenness.py").rename(tmp_path / "tasks" / f"lenient_{tmp_path.name}.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(stages, "share_out", lambda threads, device: threads or 1)

    def make(family: str, **changes: object) -> Run:
        mtp = int(family in ("v3", "v3.2"))
        folder = tmp_path / family
        save_model(make_model(num_nextn_predict_layers=mtp, **FAMILIES[family]), folder, tiny_tokenizer)
        settings = {
            "environments": [f"tasks.lenient_{tmp_path.name}"],
            "model": str(folder / "config.json"),
            "data.sequence_tokens": 32,
            "grpo.start": str(folder),
            "grpo.steps": 2,
            "grpo.prompts_per_step": 4,
            "grpo.samples_per_prompt": 4,
            "grpo.max_new_tokens": 8,
            "grpo.development_problems": 4,
            "eval.problems": 4,
            "eval.samples": 2,
            "eval.max_new_tokens": 8,
        }
        return Run.create(tmp_path / "run", load_recipe("reasoner", settings | changes))

    return make


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_a_start_and_stays_an_ordinary_model(make_started, family, rank):
    run = make_started(family, **{"grpo.lora_rank": rank})
    stages.make(run)
    assert not any(run.stage_begun(stage) for stage in ("tokenizer", "pretrain", "sft"))
    figures = run.summary["grpo"]
    assert figures["before"].keys() == {"heldout_lenient"} and "heldout_lenient" in figures
    assert figures["logprob_gap"] < 1e-4, "what the engine samples is what is trained"
    assert run.card_path.is_file() and "lenient" in run.report_path.read_text(encoding="utf-8")
    given, made = Path(run.recipe.grpo.start), run.latest()
    before, after = load_model(given), load_model(made)
    changed = {n for n, p in before.named_parameters() if not torch.equal(p, after.get_parameter(n))}
    assert changed and any("experts.gate_up" in n for n in changed) == (rank == 0 and family[0] == "v")
    assert {f.name for f in given.iterdir()} <= {f.name for f in made.iterdir()}
    files = [json.loads((folder / "config.json").read_text()) for folder in (given, made)]
    assert files[0] == files[1]
    engine = Engine.load(made)
    prompts = [engine.chat.prompt([Message("user", "12")])]
    (output,) = engine.generate(prompts, SamplingParams(max_tokens=4, temperature=0.0))
    assert 1 <= len(output.token_ids) <= 4


def test_a_cold_start_comes_between(make_started):
    run = make_started("v3", **{"grpo.cold_start": True, "sft.steps": 2, "sft.development_problems": 2})
    stages.make(run, "grpo")
    assert run.stage_done("sft") and not run.stage_begun("pretrain")
    start, sft, grpo = (load_model(f) for f in (run.recipe.grpo.start, run.latest("sft"), run.latest("grpo")))
    head = [model.lm_head.weight for model in (start, sft, grpo)]
    assert not torch.equal(head[0], head[1]) and not torch.equal(head[1], head[2])
    gap = [float((a - b).detach().abs().max()) for a, b in ((head[0], head[2]), (head[1], head[2]))]
    assert gap[1] < gap[0], "reinforcement goes on from the cold start, not from the folder"


def test_a_start_that_is_gone_is_told(make_started, tmp_path):
    run = make_started("v3", **{"grpo.start": str(tmp_path / "gone")})
    with pytest.raises(CheckpointError, match="gone"):
        stages.make(run, "grpo")
