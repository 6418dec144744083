"""Programs that others wrote against DeepSeek's and OpenAI's servers, on a real socket: litellm and lm-eval."""

from __future__ import annotations

import importlib
import importlib.util
import json

import pytest

from leanseek.checkpoint.directory import save_model
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.messages import ToolCall
from tests.server.test_app import ASK

QUESTIONS = [("start 5 +3", (" 8", " 9"), 0), ("largest 4 7", (" 4", " 7"), 1), ("total 2 +2", (" 5", " 4 the"), 1)]
TOOL = {"type": "function", "function": {"name": "switch", "parameters": {"type": "object", "properties": {}}}}


def client_of(name):
    """Import a client, which takes seconds, or skip by its name."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}, of the extra clients")
    return importlib.import_module(name)


@pytest.fixture
def litellm(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches a list of prices
    return client_of("litellm")


@pytest.mark.slow
def test_litellms_deepseek_provider(litellm, script, speak, serve):
    listener = serve(script("a thought", "an answer"), api_keys=("alpha",))
    options = {"model": "deepseek/deepseek-reasoner", "messages": ASK, "api_key": "alpha", "num_retries": 0}
    for base in (listener.url, f"{listener.url}/v1", f"{listener.url}/beta"):
        answer = litellm.completion(api_base=base, **options)
        assert answer.choices[0].message.content == "an answer"
        assert answer.choices[0].message.reasoning_content.strip() == "a thought"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.prompt_tokens > 3
    chunks = list(litellm.completion(api_base=listener.url, stream=True, **options))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "an answer"
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas).strip() == "a thought"
    calling = serve(speak("", None, [ToolCall("x", "switch", "{}")]))
    answer = litellm.completion(api_base=calling.url, tools=[TOOL], **{**options, "model": "deepseek/deepseek-chat"})
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls[0].function.name == "switch"
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(api_base=listener.url, **{**options, "api_key": "beta"})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(api_base=calling.url, **{**options, "model": "deepseek/another"})


@pytest.mark.slow
def test_lm_evals_local_completions_on_a_file_of_tasks(tmp_path, monkeypatch, make_model, tiny_tokenizer, serve):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm_eval = client_of("lm_eval")
    model = make_model()
    save_model(model, tmp_path / "tiny", tiny_tokenizer)
    lines = [json.dumps({"question": q, "choices": list(c), "gold": g}) for q, c, g in QUESTIONS]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
    }
    choosing = {"task": "choosing", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", **data}
    saying = {"task": "saying", "output_type": "generate_until", "generation_kwargs": {"max_gen_toks": 5}, **data}
    listener = serve(Engine(model, tiny_tokenizer, max_batch=4))
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "base_url": f"{listener.url}/v1/completions",
            "model": "tiny",
            "tokenizer": str(tmp_path / "tiny"),
            "tokenizer_backend": "huggingface",
            "num_concurrent": 1,
            "max_length": 120,
        },
        tasks=[
            {**choosing, "doc_to_target": "{{gold}}", "metric_list": [{"metric": "acc"}]},
            {**saying, "doc_to_target": "{{choices[gold]}}", "metric_list": [{"metric": "exact_match"}]},
        ],
        task_manager=lm_eval.tasks.TaskManager(include_defaults=False),  # it would read thousands of files
        bootstrap_iters=0,
        log_samples=True,
    )
    # What it read of the answers is what an engine of our own says.
    engine, chosen = Engine(model, tiny_tokenizer, max_batch=1), []
    for sample, (question, choices, gold) in zip(found["samples"]["choosing"], QUESTIONS, strict=True):
        scores = [sum(_logprobs(engine, tiny_tokenizer, question, choice)) for choice in choices]
        told = [float(answer[0][0]) for answer in sample["resps"]]
        assert told == pytest.approx(scores, abs=1e-3)  # sums of about five figures of fp32, in batches or alone
        chosen.append(max(range(2), key=scores.__getitem__) == gold)
    assert found["results"]["choosing"]["acc,none"] == pytest.approx(sum(chosen) / len(chosen))
    for sample, (question, _, _) in zip(found["samples"]["saying"], QUESTIONS, strict=True):
        output = engine.generate([tiny_tokenizer.encode(question)], SamplingParams(max_tokens=5, temperature=0.0))[0]
        assert sample["resps"][0][0] == tiny_tokenizer.decode(output.token_ids)


def _logprobs(engine, tokenizer, question, choice):
    before = tokenizer.encode(question)
    whole = tokenizer.encode(question + choice)
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    engine.add(whole, params, "scored")
    events = []
    while engine.has_work:
        events += engine.step()
    return events[0].prompt_logprobs[len(before) :]
