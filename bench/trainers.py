"""Trainers: those of litgpt, transformers and TRL, each in a process that takes steps when it is told to.

A line with a number comes in, that many steps are taken, and their seconds and tokens go out as one line of JSON. The
process needs nothing of leanseek: litgpt asks for other versions of what is installed, so it has a Python of its own.

    python bench/trainers.py transformers '{"model": "FOLDER", "tokens": "FILE.npy", ...}'
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MANY = 1_000_000  # steps: the parent ends them


class Pace:
    """Takes steps when told; `tokens` is added to by whoever reads data."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print goes elsewhere
        self.left, self.tokens = 0, 0
        self._start_s: float | None = None
        self._tokens = 0

    def before_step(self) -> None:
        """Wait here until the next step is wanted."""
        if self.left == 0:
            if self._start_s is not None:
                seconds = time.perf_counter() - self._start_s
                print(json.dumps([seconds, self.tokens - self._tokens]), file=self.out, flush=True)
            line = sys.stdin.readline()
            if not line:
                os._exit(0)
            self.left, self._tokens, self._start_s = int(line), self.tokens, time.perf_counter()
        self.left -= 1


def litgpt(given: dict[str, Any], pace: Pace) -> None:
    """litgpt's own `pretrain.setup` on windows of tokens; it compiles the model by itself."""
    import torch
    from litgpt import Config, pretrain
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import DataModule
    from torch.utils.data import DataLoader, IterableDataset

    length, batch, micro = given["length"], given["batch"], given["micro"]
    windows = torch.from_numpy(np.load(given["tokens"])).unfold(0, length + 1, length)

    class Windows(IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            while True:
                for number, window in enumerate(windows):
                    if number % batch == 0:
                        pace.before_step()
                    pace.tokens += length
                    yield window

    class Data(DataModule):
        def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
            pass

        def train_dataloader(self) -> Any:
            return DataLoader(Windows(), batch_size=micro)

        def val_dataloader(self) -> Any:
            return DataLoader(windows[:micro], batch_size=micro)

    torch.set_num_threads(given["threads"])
    if not given["compile"]:
        torch.compile = lambda model: model
    with tempfile.TemporaryDirectory() as out:
        pretrain.setup(
            "none",
            model_config=Config(**given["config"]),
            out_dir=Path(out),
            precision="32-true",
            data=Data(),
            train=TrainArgs(
                save_interval=None,
                log_interval=MANY,
                global_batch_size=batch,
                micro_batch_size=micro,
                max_tokens=MANY * batch * length,
                max_norm=1.0,
                max_seq_length=length,
                lr_warmup_steps=1,
                tie_embeddings=False,
            ),
            eval=EvalArgs(interval=MANY, max_iters=1, final_validation=False),
            optimizer={"class_path": given["optimiser"], "init_args": {"lr": 4e-4}},
            devices=1,
            logger_name="csv",
        )


def transformers(given: dict[str, Any], pace: Pace) -> None:
    """transformers' `Trainer` on windows of tokens."""
    import torch
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments, default_data_collator

    length, batch, micro = given["length"], given["batch"], given["micro"]
    windows = torch.from_numpy(np.load(given["tokens"])).unfold(0, length, length).tolist()
    data = Dataset.from_dict({"input_ids": windows, "labels": windows}).with_format("torch")

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        pace.tokens += len(rows) * length
        return dict(default_data_collator(rows))

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(**_usual(given, out), per_device_train_batch_size=micro)
        arguments.gradient_accumulation_steps = batch // micro
        _train(Trainer(_model(given), arguments, collate, data), pace)


def trl(given: dict[str, Any], pace: Pace) -> None:
    """TRL's `SFTTrainer`, packing, on conversations with loss on some of their tokens."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in Path(given["examples"]).read_text(encoding="utf-8").splitlines()]
    data = Dataset.from_list([{"input_ids": ids, "completion_mask": mask} for ids, mask in rows])
    torch.set_num_threads(given["threads"])
    with tempfile.TemporaryDirectory() as out:
        arguments = SFTConfig(
            **_usual(given, out),
            per_device_train_batch_size=given["packs"] // given["parts"],
            gradient_accumulation_steps=given["parts"],
            max_length=given["length"],
            packing=True,
            packing_strategy=given["strategy"],
            completion_only_loss=True,
            gradient_checkpointing=False,
            bf16=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(given["model"])
        trainer = SFTTrainer(_model(given), args=arguments, train_dataset=data, processing_class=tokenizer)
        collate = trainer.data_collator

        def counted(rows: list[dict[str, Any]]) -> Any:
            pace.tokens += sum(len(one["input_ids"]) for one in rows)
            return collate(rows)

        trainer.data_collator = counted
        _train(trainer, pace)


def _model(given: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(given["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        given["model"], dtype=torch.float32, attn_implementation=given["attention"]
    )
    model.set_experts_implementation(given["experts"])
    return model


def _usual(given: dict[str, Any], out: str) -> dict[str, Any]:
    return {
        "output_dir": out,
        "use_cpu": True,
        "max_steps": MANY,
        "learning_rate": 4e-4,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "optim": given["optimiser"],
        "torch_compile": given["compile"],
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def _train(trainer: Any, pace: Pace) -> None:
    from transformers import PrinterCallback, TrainerCallback

    class Told(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            pace.before_step()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Told())
    trainer.train()


if __name__ == "__main__":
    {"litgpt": litgpt, "transformers": transformers, "trl": trl}[sys.argv[1]](json.loads(sys.argv[2]), Pace())
