"""The engine: replies are those of the model alone, whatever runs beside them and whoever leaves."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import leanseek.engine.engine as module
from leanseek.checkpoint.directory import save_model
from leanseek.engine.engine import Engine
from leanseek.engine.request import Event, Output, SamplingParams
from leanseek.errors import CheckpointError, ConfigError, EngineError
from leanseek.model.experts import Routing
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=0)
DRAWN = SamplingParams(max_tokens=12, seed=5, ignore_eos=True, logprobs=0)


def prompt(tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 320, (tokens,), generator=torch.Generator().manual_seed(1000 + seed)).tolist()


def run(engine: Engine) -> dict[tuple[str, int], list[Event]]:
    """Step until all is done; return each reply's events."""
    events: dict[tuple[str, int], list[Event]] = {}
    while engine.has_work:
        for event in engine.step():
            events.setdefault((event.request_id, event.index), []).append(event)
    return events


def tokens_of(events: list[Event]) -> list[int]:
    return [event.token_id for event in events if event.token_id is not None]


def counted(engine: Engine) -> list[int]:
    """Collect how many prompt tokens each call reads."""
    calls: list[int] = []
    read = engine.runner.read

    def reading(parts):
        calls.append(sum(end - start for _, start, end in parts))
        return read(parts)

    engine.runner.read = reading
    return calls


@torch.no_grad()
def whole_logprobs(model: Transformer, prompt_ids: list[int], output: Output, temperature: float) -> torch.Tensor:
    """Log-probabilities of a reply, from one call on the whole text."""
    text = torch.tensor([*prompt_ids, *output.token_ids])
    logits = model.logits(model(text, Segments.single(len(text))))[len(prompt_ids) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(output.token_ids)[:, None]).squeeze(1)


@pytest.mark.parametrize("params", [GREEDY, DRAWN, replace(DRAWN, temperature=0.6), replace(DRAWN, top_p=0.7)])
@pytest.mark.parametrize("shape", [{}, {"q_lora_rank": 6, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 0}])
def test_logprobs_are_those_of_the_model_on_the_whole_text(make_model, shape, params):
    model = make_model(**shape)
    prompts = [prompt(n, n) for n in (4, 1, 23, 9)]
    for ids, output in zip(prompts, Engine(model).generate(prompts, params), strict=True):
        assert len(output.token_ids) == 12 and output.logprobs is not None
        expected = whole_logprobs(model, ids, output, params.temperature or 1.0)
        assert torch.allclose(torch.tensor(output.logprobs), expected, atol=1e-5)


@torch.no_grad()
def test_greedy_tokens_are_the_most_likely_ones_of_the_whole_text(tiny_model):
    ids = prompt(7)
    output = Engine(tiny_model).generate([ids], GREEDY)[0]
    text = torch.tensor([*ids, *output.token_ids])
    logits = tiny_model.logits(tiny_model(text, Segments.single(len(text))))
    assert output.token_ids == logits[len(ids) - 1 : -1].argmax(-1).tolist()


def test_a_reply_is_the_same_alone_in_a_batch_and_with_others_leaving(tiny_model):
    """Uneven prompts and lengths, few rows, all kinds of sampling."""
    rng = random.Random(0)
    prompts = [prompt(rng.randint(1, 40), i) for i in range(14)]
    kinds = [{"temperature": 0.0}, {"seed": 1}, {"seed": 2, "temperature": 0.7, "top_p": 0.9}, {"seed": 3, "top_k": 5}]
    params = [
        SamplingParams(max_tokens=rng.randint(1, 25), n=rng.choice((1, 1, 3)), logprobs=0, **rng.choice(kinds))
        for _ in prompts
    ]
    alone = [
        output for ids, one in zip(prompts, params, strict=True) for output in Engine(tiny_model).generate([ids], one)
    ]
    for max_batch in (2, 5, 64):
        together = Engine(tiny_model, max_batch=max_batch).generate(prompts, params)
        assert [output.token_ids for output in together] == [output.token_ids for output in alone]
        assert [output.finish_reason for output in together] == [output.finish_reason for output in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_requests_may_come_and_be_cancelled_at_any_time(tiny_model):
    rng = random.Random(1)
    engine, wanted, events = Engine(tiny_model, max_batch=3), {}, {}
    cancelled = set()
    for name in range(16):
        ids, params = prompt(rng.randint(1, 20), name), SamplingParams(max_tokens=rng.randint(1, 20), seed=name)
        wanted[engine.add(ids, params, f"r{name}")] = Engine(tiny_model).generate([ids], params)[0]
        for _ in range(rng.randint(0, 4)):
            for event in engine.step():
                assert event.request_id not in cancelled
                events.setdefault(event.request_id, []).append(event)
        if rng.random() < 0.4:
            gone = f"r{rng.randint(max(name - 2, 0), name)}"
            if not events.get(gone) or events[gone][-1].finish_reason is None:
                engine.cancel(gone)
                cancelled.add(gone)
    for (name, _), more in run(engine).items():
        events.setdefault(name, []).extend(more)
    assert 3 <= len(cancelled) <= 10, "both kinds must occur"
    for name, expected in wanted.items():
        got = tokens_of(events.get(name, []))
        if name in cancelled:
            assert got == expected.token_ids[: len(got)] and len(got) < len(expected.token_ids)
        else:
            assert got == expected.token_ids
            assert events[name][-1].finish_reason == expected.finish_reason


def test_an_engine_whose_requests_were_cancelled_can_generate(tiny_model):
    engine = Engine(tiny_model)
    engine.add(prompt(5), GREEDY, "gone")
    engine.step()
    engine.cancel("gone")
    assert len(engine.generate([prompt(4)], GREEDY)) == 1


def test_cancelling_frees_rows_at_once_and_drops_what_waits(tiny_model):
    engine = Engine(tiny_model, max_batch=2)
    engine.add(prompt(5), replace(DRAWN, n=3), "gone")
    engine.add(prompt(6), DRAWN, "next")
    engine.step()
    engine.cancel("gone")
    engine.cancel("never was")
    first = engine.step()
    assert [event.request_id for event in first] == ["next"], "it was prefilled in the step after"
    rest = run(engine)
    assert {name for name, _ in rest} == {"next"}
    assert first[0].token_id == Engine(tiny_model).generate([prompt(6)], DRAWN)[0].token_ids[0]


def test_events_and_outputs_tell_the_same(tiny_model):
    prompts = [prompt(4, 1), prompt(9, 2)]
    outputs = Engine(tiny_model).generate(prompts, replace(DRAWN, n=2))
    engine = Engine(tiny_model)
    for i, ids in enumerate(prompts):
        engine.add(ids, replace(DRAWN, n=2), f"r{i}")
    events = run(engine)
    assert [tokens_of(events[f"r{i}", k]) for i in range(2) for k in range(2)] == [o.token_ids for o in outputs]
    for name, output in zip(sorted(events), outputs, strict=True):
        assert [event.logprob for event in events[name]] == pytest.approx(output.logprobs)
        assert [event.finish_reason for event in events[name]] == [None] * 11 + ["length"]


def test_the_seed_decides_and_reply_i_draws_with_seed_plus_i(tiny_model):
    engine = Engine(tiny_model)
    ids = prompt(5)
    four = [output.token_ids for output in engine.generate([ids], replace(DRAWN, n=4))]
    assert len({tuple(tokens) for tokens in four}) == 4
    assert four == [engine.generate([ids], replace(DRAWN, seed=5 + i))[0].token_ids for i in range(4)]
    fresh = [engine.generate([ids], replace(DRAWN, seed=None))[0].token_ids for _ in range(2)]
    assert fresh[0] != fresh[1], "without a seed the engine takes a new one"


def test_n_replies_read_their_prompt_once(tiny_model):
    engine = Engine(tiny_model)
    calls = counted(engine)
    engine.generate([prompt(30), prompt(20, 1)], replace(DRAWN, n=6, max_tokens=2))
    assert calls == [50]


def test_a_prefill_call_is_bounded(tiny_model, monkeypatch):
    prompts = [prompt(n, n) for n in (6, 5, 4, 30, 2)]
    expected = [output.token_ids for output in Engine(tiny_model).generate(prompts, GREEDY)]
    monkeypatch.setattr(module, "PREFILL_TOKENS", 12)
    engine = Engine(tiny_model)
    calls = counted(engine)
    assert [output.token_ids for output in engine.generate(prompts, GREEDY)] == expected
    assert [call for call in calls if call not in range(1, 6)] == [11, 30], "6 + 5, and one that is longer by itself"


def test_prompts_that_are_known_beforehand_are_read_several_at_a_time(tiny_model):
    prompts = [prompt(n % 5 + 2, n) for n in range(60)]
    each = [SamplingParams(max_tokens=n * 7 % 23 + 1, temperature=0.0) for n in range(60)]
    expected = [output.token_ids for output in Engine(tiny_model, max_batch=1).generate(prompts, each)]
    engine = Engine(tiny_model, max_batch=32)
    read, texts = engine.runner.read, []
    engine.runner.read = lambda parts: (texts.append(len(parts)), read(parts))[1]
    assert [output.token_ids for output in engine.generate(prompts, each)] == expected
    assert texts[0] == 32 and sum(texts) == 60
    assert min(texts[:-1]) >= 4 <= len(texts), "four of 32 rows are free before more is read"


def test_the_end_of_sentence_ends_a_reply_unless_it_is_ignored(make_model):
    free = Engine(make_model()).generate([prompt(5)], DRAWN)[0].token_ids
    end = next(token for token in free[2:] if free.count(token) == 1)
    at = free.index(end)
    engine = Engine(make_model(eos_token_id=end))
    stopped = engine.generate([prompt(5)], replace(DRAWN, ignore_eos=False))[0]
    assert stopped.token_ids == free[: at + 1] and stopped.finish_reason == "stop"
    ignored = engine.generate([prompt(5)], DRAWN)[0]
    assert ignored.token_ids == free and ignored.finish_reason == "length"
    last = engine.generate([prompt(5)], replace(DRAWN, ignore_eos=False, max_tokens=at + 1))[0]
    assert last.finish_reason == "stop", "the end is said with the last token that was allowed"


def test_stop_tokens_and_stop_texts_end_a_reply(tiny_model, tiny_tokenizer):
    engine = Engine(tiny_model, tiny_tokenizer)
    free = engine.generate([prompt(5)], DRAWN)[0]
    token = next(token for token in free.token_ids[3:] if free.token_ids.count(token) == 1)
    at = free.token_ids.index(token)
    stopped = engine.generate([prompt(5)], replace(DRAWN, stop_token_ids=(token, 319)))[0]
    assert stopped.token_ids == free.token_ids[: at + 1] and stopped.finish_reason == "stop"
    last = engine.generate([prompt(5)], replace(DRAWN, stop_token_ids=(token,), max_tokens=at + 1))[0]
    assert last.finish_reason == "stop"

    text = free.text[4:7]
    cut = engine.generate([prompt(5)], replace(DRAWN, stop=("never said", text)))[0]
    assert cut.text == free.text[: free.text.index(text)] and cut.finish_reason == "stop"
    assert len(cut.token_ids) < len(free.token_ids), "and it stopped drawing"
    assert text in tiny_tokenizer.decode(cut.token_ids) and text not in tiny_tokenizer.decode(cut.token_ids[:-1])
    beside = engine.generate([prompt(9, 1), prompt(5), prompt(2, 2)], [GREEDY, replace(DRAWN, stop=(text,)), GREEDY])
    assert beside[1] == cut or beside[1].token_ids == cut.token_ids


def test_the_context_bounds_a_reply(tiny_model):
    engine = Engine(tiny_model, max_context_tokens=20)
    output = engine.generate([prompt(17), prompt(19, 1), prompt(2, 2)], GREEDY)
    assert [(len(o.token_ids), o.finish_reason) for o in output] == [(3, "length"), (1, "length"), (12, "length")]
    assert output[0].token_ids == Engine(tiny_model).generate([prompt(17)], GREEDY)[0].token_ids[:3]
    assert Engine(tiny_model, max_context_tokens=10**6).max_context_tokens == 128
    with pytest.raises(EngineError, match="has 20 tokens; the context of 20 leaves no room"):
        engine.add(prompt(20), GREEDY)


def test_the_routing_record_is_the_models(make_model):
    """Through prefill, decoding, copies for n > 1 and rows that move when others leave."""
    model = make_model(first_k_dense_replace=0)
    prompts = [prompt(n, n) for n in (5, 1, 17, 3)]
    params = [replace(DRAWN, n=2, max_tokens=length) for length in (2, 7, 3, 11)]
    engine = Engine(model, max_batch=5, record_experts=True)
    outputs = engine.generate(prompts, params)
    for i, output in enumerate(outputs):
        text = torch.tensor([*prompts[i // 2], *output.token_ids[:-1]])
        routing = Routing()
        with torch.no_grad():
            model(text, Segments.single(len(text)), routing=routing)
        assert output.experts.dtype == torch.int16 and output.experts.shape == (len(text), 3, 2)
        assert torch.equal(output.experts.long().sort(-1).values, routing.stacked().sort(-1).values)
    assert Engine(model).generate(prompts[:1], GREEDY)[0].experts is None


def test_broken_weights_fail_the_request_that_meets_them_and_no_other(make_model):
    """One row of the embedding is NaN: only texts with that token are lost, now and in the rows used later."""
    model, bad = make_model(), 77
    prompts = [[t for t in prompt(12, i) if t != bad] for i in range(3)]
    safe = replace(GREEDY, max_tokens=20)
    healthy = [output.token_ids for output in Engine(model).generate(prompts, safe)]
    assert not any(bad in tokens for tokens in healthy)
    with torch.no_grad():
        model.model.embed_tokens.weight[bad] = float("nan")
    engine = Engine(model, max_batch=4)
    outputs = engine.generate([prompts[0], [5, bad, 6], prompts[1], prompts[2]], safe)
    assert [output.token_ids for i, output in enumerate(outputs) if i != 1] == healthy
    failed = outputs[1]
    assert failed.finish_reason == "error" and failed.error is not None and "not a finite number" in failed.error
    assert failed.token_ids == [] and failed.logprobs == []


@pytest.mark.parametrize("place", [0, 3])
def test_what_a_failed_text_left_in_its_row_does_not_spoil_the_next_one(make_model, place):
    """The row's latents are NaN. A shorter text beside longer ones masks them, but weight zero times NaN is NaN."""
    model, bad = make_model(), 77
    first, second = ([prompt(12, i) for i in numbers] for numbers in ((0, 1, 2, 3), (4, 5, 6, 7)))
    second[place] = [9]
    expected = [output.token_ids for output in Engine(model).generate(second, GREEDY)]
    with torch.no_grad():
        model.model.embed_tokens.weight[bad] = float("nan")
    first[place] = [5, bad, 6, 7, 8, 9]
    engine = Engine(model, max_batch=4)
    assert engine.generate(first, GREEDY)[place].finish_reason == "error"
    assert [output.token_ids for output in engine.generate(second, GREEDY)] == expected


def test_the_error_event_has_no_token(make_model):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    engine = Engine(model)
    engine.add([4, 5], GREEDY, "r")
    (event,) = engine.step()
    assert (event.token_id, event.logprob, event.finish_reason) == (None, None, "error")
    assert event.error is not None and not engine.has_work


def test_weights_that_break_while_replies_run_fail_them_there(make_model):
    model = make_model()
    engine = Engine(model)
    engine.add([4, 5], DRAWN, "r")
    engine.step()
    engine.step()
    with torch.no_grad():
        kept = model.lm_head.weight.clone()
        model.lm_head.weight.fill_(float("nan"))
    assert [event.finish_reason for event in engine.step()] == ["error"]
    with torch.no_grad():
        model.lm_head.weight.copy_(kept)
    assert engine.generate([prompt(5)], DRAWN)[0].token_ids == Engine(model).generate([prompt(5)], DRAWN)[0].token_ids


def test_it_reads_the_weights_as_they_are_now(make_model):
    """The trainer changes them between two calls; a copy would sample from an old policy."""
    model = make_model()
    engine = Engine(model)
    before = engine.generate([prompt(5)], GREEDY)[0]
    loss = model.logits(model(torch.tensor(prompt(5)), Segments.single(5))).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad.sign()
    after = engine.generate([prompt(5)], GREEDY)[0]
    assert after.token_ids != before.token_ids
    assert torch.allclose(torch.tensor(after.logprobs), whole_logprobs(model, prompt(5), after, 1.0), atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "the prompt is empty"), ([5, 320], "outside the vocabulary of 320"), ([-1], "outside the vocabulary")],
)
def test_prompts_that_cannot_be_served_are_refused(tiny_model, ids, message):
    engine = Engine(tiny_model)
    with pytest.raises(EngineError, match=message):
        engine.add(ids, GREEDY)
    assert not engine.has_work


def test_generate_needs_the_engine_for_itself_and_leaves_it_idle_when_it_fails(tiny_model):
    engine = Engine(tiny_model)
    engine.add(prompt(3), GREEDY)
    with pytest.raises(EngineError, match="needs an idle engine"):
        engine.generate([prompt(3)], GREEDY)
    engine = Engine(tiny_model)
    with pytest.raises(EngineError, match="the prompt is empty"):
        engine.generate([prompt(3), []], GREEDY)
    assert not engine.has_work

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate([prompt(3), prompt(4)], [replace(GREEDY, max_tokens=2), GREEDY], on_progress=interrupt)
    assert not engine.has_work and engine.step() == []
    assert len(engine.generate([prompt(3)], GREEDY)) == 1


def test_progress_counts_finished_replies(tiny_model):
    counts: list[int] = []
    params = [replace(GREEDY, max_tokens=length) for length in (2, 5, 2)]
    Engine(tiny_model).generate([prompt(3, i) for i in range(3)], params, on_progress=counts.append)
    assert counts == [2, 3]


def test_nothing_to_do_is_nothing(tiny_model):
    assert Engine(tiny_model).generate([], GREEDY) == [] and Engine(tiny_model).step() == []


def test_texts_start_with_bos_and_need_a_tokenizer(tiny_model, tiny_tokenizer):
    engine = Engine(tiny_model, tiny_tokenizer)
    ids = [tiny_tokenizer.bos_id, *tiny_tokenizer.encode("start 5")]
    by_text, by_ids = engine.generate(["start 5"], GREEDY)[0], engine.generate([ids], GREEDY)[0]
    assert by_text.token_ids == by_ids.token_ids
    assert by_text.text == tiny_tokenizer.decode(by_text.token_ids)
    with pytest.raises(EngineError, match="no tokenizer"):
        Engine(tiny_model).generate(["start 5"], GREEDY)


def test_a_folder_is_opened_in_the_form_asked_for(tmp_path, tiny_model, tiny_tokenizer):
    save_model(tiny_model, tmp_path / "model", tiny_tokenizer)
    engine = Engine.load(tmp_path / "model")
    assert (
        engine.generate([prompt(5)], GREEDY)[0].token_ids
        == Engine(tiny_model).generate([prompt(5)], GREEDY)[0].token_ids
    )
    assert engine.chat is not None
    low = Engine.load(tmp_path / "model", weights="bf16")
    output = low.generate([prompt(5)], replace(GREEDY, max_tokens=3))[0]
    head = low.model.lm_head
    numbers = head.weight if head.stored is None else head.stored.numbers  # with native kernels, as they are stored
    assert numbers.dtype == torch.bfloat16 and output.finish_reason == "length"
    with pytest.raises(ConfigError, match=r"weights = 'int3' is not known; .*accepted are fp32, bf16, fp8, int8, int4"):
        Engine.load(tmp_path / "model", weights="int3")
    with pytest.raises(CheckpointError, match="no such folder"):
        Engine.load(tmp_path / "nothing")
