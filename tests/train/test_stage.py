"""A training stage in its run folder: where it starts, what it leaves, and that going on is as if never stopped."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

import leanseek.checkpoint.resume as resume
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.checkpoint.resume import FOLDER, TENSORS, load_state
from leanseek.cost.ledger import Charge
from leanseek.data.tokens import tokenise
from leanseek.envs.environment import load_environment
from leanseek.errors import CheckpointError, LeanseekError, RunError
from leanseek.log import RunLog
from leanseek.run import Run
from leanseek.settings import Recipe
from leanseek.train.pretrain import pretrain
from leanseek.train.sft import sft
from leanseek.train.stage import Stage

WHO = ("whole", "parts", "plain")
TASKS = ("running_total", "largest")


@dataclass
class Watch:
    """Accuracy that is made up, and may raise an interrupt the n-th time that it is asked for."""

    interrupt_at: int | None = None
    asked: list[int] = field(default_factory=list)

    def __call__(self, model: Any) -> dict[str, float]:
        self.asked.append(1)
        if len(self.asked) == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)
        return {"heldout_x": 0.25 * len(self.asked)}


def stage_of(run: Run, name: str, tokenizer: Any, workers: int = 1) -> Stage:
    return Stage(run, name, tokenizer, RunLog(run.metrics_path), Charge("test"), workers)


def tasks() -> list[Any]:
    return [load_environment(name) for name in TASKS]


def work(name: str, run: Run, tokenizer: Any, *, interrupt: bool = False) -> dict[str, Any]:
    """Do a stage's training; with `interrupt`, Ctrl-C comes while step 3 is looked at."""
    stage = stage_of(run, name, tokenizer)
    if name == "sft":
        return sft(stage, tasks(), Watch(1 if interrupt else None))
    if interrupt:
        stage = replace(stage, log=Interrupting(run.metrics_path))
    return pretrain(stage, tokenise(run.recipe, tokenizer))


class Interrupting(RunLog):
    """A log in which Ctrl-C comes with step 3."""

    def log(self, stage: str, step: int, **values: Any) -> None:
        super().log(stage, step, **values)
        if step == 3:
            signal.raise_signal(signal.SIGINT)


def prepared(name: str, make_run: Any, folder: str, tiny_tokenizer: Any, tiny_model: Any, **changes: Any) -> Run:
    """Make a run in which a stage can begin."""
    run = make_run(folder, **changes)
    if name == "sft":
        save_model(tiny_model, run.checkpoint("pretrain", 6), tiny_tokenizer)
    return run


def rows(run: Run, stage: str) -> list[dict[str, Any]]:
    """Return what was logged, without what depends on the clock."""
    read = RunLog(run.metrics_path).read(stage)
    return [
        {k: v for k, v in row.items() if k not in ("time_s", "tokens_per_s", "sample_s", "samples_per_s")}
        for row in read
    ]


def assert_same_checkpoint(one: Run, other: Run, name: str) -> None:
    """Compare weights, router biases, optimiser state and everything else, bit by bit."""
    paths = [run.latest(name) for run in (one, other)]
    assert paths[0].name == paths[1].name
    weights = [load_model(path).state_dict() for path in paths]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
    states = [dict(resume._flatten(load_state(path))) for path in paths]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        same = torch.equal(value, states[1][key]) if isinstance(value, torch.Tensor) else value == states[1][key]
        assert same, key


@pytest.mark.parametrize("name", ["pretrain", "sft"])
def test_going_on_is_bit_by_bit_as_if_never_stopped(name, make_run, tiny_tokenizer, tiny_model):
    whole, parts = (prepared(name, make_run, folder, tiny_tokenizer, tiny_model) for folder in ("whole", "parts"))
    figures = work(name, whole, tiny_tokenizer)
    with pytest.raises(KeyboardInterrupt):
        work(name, parts, tiny_tokenizer, interrupt=True)
    assert parts.latest(name).name == f"{name}-3" and load_state(parts.latest(name))["done"] == 3
    again = work(name, parts, tiny_tokenizer)
    assert_same_checkpoint(whole, parts, name)
    assert figures["steps"] == again["steps"] == 6
    if name == "pretrain":
        assert figures == again and rows(whole, name) == rows(parts, name)
    assert [row["step"] for row in rows(parts, name)] == [1, 2, 3, 4, 5, 6]


def test_going_on_with_two_workers_is_exact_too(make_run, tiny_tokenizer, tiny_model):
    whole, parts = (prepared("sft", make_run, name, tiny_tokenizer, tiny_model) for name in ("whole", "parts"))
    for run, interrupts in ((whole, (None,)), (parts, (1, None))):
        for interrupt_at in interrupts:
            try:
                sft(stage_of(run, "sft", tiny_tokenizer, workers=2), tasks(), Watch(interrupt_at))
            except KeyboardInterrupt:
                assert interrupt_at == 1
    assert_same_checkpoint(whole, parts, "sft")


def test_steps_after_the_last_checkpoint_are_done_and_logged_anew(make_run, tiny_tokenizer):
    """A process that is killed outright leaves rows of steps that no checkpoint has."""
    whole, killed = make_run("whole"), make_run("killed")
    work("pretrain", whole, tiny_tokenizer)

    class Dying(RunLog):
        def log(self, stage: str, step: int, **values: Any) -> None:
            super().log(stage, step, **values)
            if step == 5:
                raise SystemExit("killed")

    with pytest.raises(SystemExit):
        pretrain(
            replace(stage_of(killed, "pretrain", tiny_tokenizer), log=Dying(killed.metrics_path)),
            tokenise(killed.recipe, tiny_tokenizer),
        )
    assert killed.latest("pretrain").name == "pretrain-3" and len(rows(killed, "pretrain")) == 5
    work("pretrain", killed, tiny_tokenizer)
    assert_same_checkpoint(whole, killed, "pretrain")
    assert rows(whole, "pretrain") == rows(killed, "pretrain")


@pytest.mark.parametrize("name", ["pretrain", "sft"])
def test_a_stage_that_was_done_and_not_recorded_is_left_as_it_is(name, make_run, tiny_tokenizer, tiny_model):
    run = prepared(name, make_run, "run", tiny_tokenizer, tiny_model)
    figures = work(name, run, tiny_tokenizer)
    before = {path: path.stat().st_mtime_ns for path in run.latest(name).rglob("*")}
    again = work(name, run, tiny_tokenizer)
    assert again.keys() == figures.keys() and again["steps"] == figures["steps"] == 6
    assert name == "sft" or again == figures
    assert {path: path.stat().st_mtime_ns for path in run.latest(name).rglob("*")} == before


def test_pretraining_starts_afresh_from_the_seed(make_run, tiny_tokenizer):
    one, other = (stage_of(make_run(str(seed), seed=seed), "pretrain", tiny_tokenizer).model() for seed in (0, 1))
    again = stage_of(make_run("again"), "pretrain", tiny_tokenizer).model()
    assert torch.equal(one.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert (one.config.bos_token_id, one.config.eos_token_id) == (tiny_tokenizer.bos_id, tiny_tokenizer.eos_id)


def test_each_stage_starts_from_the_one_before(make_run, make_model, tiny_tokenizer):
    run = make_run()
    with pytest.raises(RunError, match="run has no checkpoint of pretrain, which sft starts from"):
        stage_of(run, "sft", tiny_tokenizer).model()
    models = {"pretrain": make_model(seed=1), "sft": make_model(seed=2), "grpo": make_model(seed=3)}
    save_model(models["pretrain"], run.checkpoint("pretrain", 4), tiny_tokenizer)
    with pytest.raises(RunError, match="no checkpoint of sft, which grpo starts from"):
        stage_of(run, "grpo", tiny_tokenizer).model()

    def starts_from(stage: str) -> list[str]:
        weight = stage_of(run, stage, tiny_tokenizer).model().lm_head.weight
        return [name for name, model in models.items() if torch.equal(model.lm_head.weight, weight)]

    assert starts_from("sft") == ["pretrain"]
    save_model(models["sft"], run.checkpoint("sft", 2), tiny_tokenizer)
    assert starts_from("sft") == ["sft"] and starts_from("grpo") == ["sft"]
    save_model(models["grpo"], run.checkpoint("grpo", 1), tiny_tokenizer)
    assert starts_from("grpo") == ["grpo"]


@pytest.mark.parametrize(("keep", "left"), [(1, ["pretrain-6"]), (2, ["pretrain-4", "pretrain-6"])])
def test_only_the_newest_checkpoints_are_kept(make_run, tiny_tokenizer, keep, left):
    run = make_run(pretrain__checkpoint_every=2, pretrain__keep_checkpoints=keep)
    work("pretrain", run, tiny_tokenizer)
    assert [path.name for path in run.checkpoints("pretrain")] == left
    assert (run.latest() / "tokenizer.json").is_file(), "whoever gets the folder can use it"


@pytest.mark.parametrize("where", [(resume, "save_file"), (os, "fsync")], ids=["weights", "fsync"])
def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(make_run, tiny_tokenizer, monkeypatch, where):
    at_once = {"pretrain__write_behind": False}  # so that it is the save of step 6 alone that meets the full disk
    run, whole = make_run(**at_once), make_run("whole", **at_once)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Filling(RunLog):
        """The disk fills up once step 5 is logged: the save of step 6 fails."""

        def log(self, stage: str, step: int, **values: Any) -> None:
            super().log(stage, step, **values)
            if step == 5:
                monkeypatch.setattr(*where, refuse)

    corpus = tokenise(run.recipe, tiny_tokenizer)
    with pytest.raises(
        CheckpointError,
        match=r"pretrain-6 cannot be saved .*No space left on device.*earlier checkpoints are untouched",
    ):
        pretrain(replace(stage_of(run, "pretrain", tiny_tokenizer), log=Filling(run.metrics_path)), corpus)
    monkeypatch.undo()
    folder = run.folder / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["pretrain-3"], "and no half checkpoint beside it"
    work("pretrain", run, tiny_tokenizer)
    work("pretrain", whole, tiny_tokenizer)
    assert_same_checkpoint(whole, run, "pretrain")


@pytest.mark.parametrize("name", [f"{FOLDER}/{TENSORS}", "model.safetensors", "config.json"])
def test_a_truncated_checkpoint_is_told(make_run, tiny_tokenizer, name):
    run = make_run(pretrain__steps=3)
    work("pretrain", run, tiny_tokenizer)
    path = run.latest("pretrain") / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(LeanseekError, match=r"pretrain-3.*(damaged|cut short|not valid JSON)") as told:
        work("pretrain", run, tiny_tokenizer)
    assert isinstance(told.value, CheckpointError) or name == "config.json"


@pytest.mark.parametrize("name", [f"{FOLDER}/{TENSORS}", "model.safetensors", "tokenizer.json"])
def test_from_a_damaged_checkpoint_it_goes_back_to_the_one_before(make_run, tiny_tokenizer, capsys, name):
    """One flipped bit is enough, and the run still ends with the same bits."""
    whole, run = (make_run(folder, pretrain__keep_checkpoints=2) for folder in ("whole", "run"))
    work("pretrain", whole, tiny_tokenizer)
    work("pretrain", run, tiny_tokenizer)
    path = run.latest("pretrain") / name
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)
    work("pretrain", run, tiny_tokenizer)
    told = capsys.readouterr()
    assert "pretrain-6 is damaged" in told.err + told.out and "going back to pretrain-3" in told.err + told.out
    assert (run.folder / "checkpoints" / "damaged-pretrain-6").is_dir(), "nothing is thrown away"
    assert_same_checkpoint(whole, run, "pretrain")


@pytest.mark.parametrize("mean", [{"ema": 0.7}, {"average_from": 0.3}], ids=lambda mean: next(iter(mean)))
def test_a_mean_of_the_weights_resumes_bit_by_bit(make_run, tiny_tokenizer, mean):
    mean = {f"pretrain__{name}": value for name, value in mean.items()}
    whole, parts, plain = (make_run(folder, **changes) for folder, changes in zip(WHO, (mean, mean, {}), strict=True))
    figures = work("pretrain", whole, tiny_tokenizer)
    with pytest.raises(KeyboardInterrupt):
        work("pretrain", parts, tiny_tokenizer, interrupt=True)
    assert work("pretrain", parts, tiny_tokenizer) == figures == work("pretrain", parts, tiny_tokenizer)
    assert_same_checkpoint(whole, parts, "pretrain")
    work("pretrain", plain, tiny_tokenizer)
    learnt = load_state(whole.latest("pretrain"))["average"]["weights"]
    for name, weight in load_model(plain.latest("pretrain")).state_dict().items():
        assert torch.equal(learnt[name], weight), "the folder has the mean; beside it lies what was learnt"


def test_a_write_goes_on_beside_the_steps_and_its_failure_is_told_at_the_next(make_run, tiny_tokenizer, monkeypatch):
    """The disk is full while step 2 is written: steps go on, then the run stops, and loses no checkpoint."""
    run, whole = (make_run(name, pretrain__checkpoint_every=1) for name in ("run", "whole"))
    failing, stepped = threading.Event(), threading.Event()
    write, calls = resume.save_file, []

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            failing.set()
            assert stepped.wait(60), "the steps do not wait for the write"
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args, **kwargs)

    class Stepping(RunLog):
        def log(self, stage: str, step: int, **values: Any) -> None:
            super().log(stage, step, **values)
            if step == 3:
                assert failing.wait(60)
                stepped.set()

    monkeypatch.setattr(resume, "save_file", full)
    stage = replace(stage_of(run, "pretrain", tiny_tokenizer), log=Stepping(run.metrics_path))
    corpus = tokenise(run.recipe, tiny_tokenizer)
    with pytest.raises(CheckpointError, match=r"pretrain-2 cannot be saved.*earlier checkpoints are untouched"):
        pretrain(stage, corpus)
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["pretrain-1"]
    assert [row["step"] for row in rows(run, "pretrain")][-1] == 3, "it was told at once"
    for one in (run, whole):
        work("pretrain", one, tiny_tokenizer)
    assert_same_checkpoint(whole, run, "pretrain")


def test_ctrl_c_waits_for_the_write(make_run, tiny_tokenizer, monkeypatch):
    run, write = make_run(), resume.save_file

    def slow(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.3)
        write(*args, **kwargs)

    monkeypatch.setattr(resume, "save_file", slow)
    with pytest.raises(KeyboardInterrupt):
        work("pretrain", run, tiny_tokenizer, interrupt=True)
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["pretrain-3"]


def test_written_behind_or_at_once_is_the_same(make_run, tiny_tokenizer):
    behind, at_once = make_run("behind"), make_run("at_once", pretrain__write_behind=False)
    for run in (behind, at_once):
        work("pretrain", run, tiny_tokenizer)
    assert_same_checkpoint(behind, at_once, "pretrain")


def test_the_best_is_kept_beside_the_newest(make_run, tiny_tokenizer, monkeypatch):
    """Validation losses are made up: step 4 is the best, though no checkpoint was due then."""
    losses = iter([3.0, 2.0, 2.5, 2.5])
    monkeypatch.setattr("leanseek.train.pretrain.mean_loss", lambda *_: next(losses))
    changes = {"validate_every": 2, "checkpoint_every": 5, "keep_best": True}
    run = make_run(**{f"pretrain__{name}": value for name, value in changes.items()})
    (run.folder / "checkpoints" / ".pretrain-1.killed").mkdir(parents=True)
    work("pretrain", run, tiny_tokenizer)
    left = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert left == ["pretrain-4", "pretrain-6"], "and nothing of a write that was killed"
    assert run.summary["pretrain"]["best"] == {"step": 4, "validation_loss": 2.0}


def test_a_growing_batch_resumes_at_the_exact_place(make_run, tiny_tokenizer, tiny_model):
    ramp = {"pretrain__ramp_from": 2, "pretrain__ramp_fraction": 1.0, "pretrain__late_mtp_weight": 0.1}
    whole, parts = (make_run(folder, **ramp) for folder in ("whole", "parts"))
    figures = work("pretrain", whole, tiny_tokenizer)
    with pytest.raises(KeyboardInterrupt):
        work("pretrain", parts, tiny_tokenizer, interrupt=True)
    assert work("pretrain", parts, tiny_tokenizer) == figures
    assert_same_checkpoint(whole, parts, "pretrain")


def test_a_checkpoint_of_another_config_is_told(make_run, tiny_tokenizer, tmp_path):
    run = make_run(pretrain__steps=3)
    work("pretrain", run, tiny_tokenizer)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"moe_intermediate_size": 16', '"moe_intermediate_size": 32'))
    with pytest.raises(CheckpointError, match=r"another config than .* moe_intermediate_size 16, not 32; give that"):
        stage_of(run, "pretrain", tiny_tokenizer).model()


def test_a_checkpoint_without_its_training_state_is_told(make_run, tiny_tokenizer):
    run = make_run(pretrain__steps=3)
    work("pretrain", run, tiny_tokenizer)
    shutil.rmtree(run.latest("pretrain") / FOLDER)
    with pytest.raises(CheckpointError, match="the training state is missing or damaged"):
        work("pretrain", run, tiny_tokenizer)


def test_settings_are_the_stages_own(make_run, tiny_tokenizer):
    run = make_run(sft__steps=17)
    recipe: Recipe = run.recipe
    for name in ("pretrain", "sft", "grpo"):
        assert stage_of(run, name, tiny_tokenizer).settings == getattr(recipe, name)
    assert stage_of(run, "sft", tiny_tokenizer).settings.steps == 17
