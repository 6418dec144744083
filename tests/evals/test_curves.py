"""Charts from metrics: which there are, what they hold, thinned and smoothed without moving the curve."""

from __future__ import annotations

import json

import pytest

from leanseek.evals.curves import POINTS, charts, smooth, thin


def rows(stage: str, key: str, values) -> list[dict]:
    return [{"stage": stage, "step": step, key: value} for step, value in enumerate(values, 1)]


def by_title(metrics) -> dict:
    return {chart.title: chart for chart in charts(metrics)}


def test_a_run_that_has_logged_nothing_has_no_charts():
    assert charts([]) == []
    assert charts(rows("pretrain", "loss", [5.0])) == []


def test_each_metric_has_its_chart():
    metrics = [
        *rows("pretrain", "loss", [5.0, 4.0, 3.0]),
        *rows("sft", "heldout_largest", [0.1, 0.2]),
        *rows("grpo", "reward", [0.3, 0.4]),
        *rows("grpo", "heldout_largest", [0.3, 0.4]),
        *rows("grpo", "correct_largest", [0.3, 0.4]),
        *rows("grpo", "length", [30, 31]),
        *rows("grpo", "logprob_gap", [1e-6, 2e-6]),
    ]
    found = by_title(metrics)
    assert [title.split(":")[0] for title in found] == ["Pretraining", "Cold start (SFT)", *["GRPO"] * 5]
    assert found["GRPO: engine against trainer"].scale == "log"


def test_stages_on_ones_own_data_have_theirs():
    metrics = [
        *rows("sft", "loss", [2.0, 1.0]),
        *rows("sft", "validation_loss", [2.0, 1.5]),
        *rows("dpo", "preferred", [0.5, 0.9]),
        *rows("dpo", "validation_preferred", [0.5, 0.8]),
        *rows("dpo", "chosen_reward", [0.0, 0.2]),
        *rows("dpo", "rejected_reward", [0.0, -0.3]),
        *rows("dpo", "loss", [0.69, 0.3]),
    ]
    found = by_title(metrics)
    own = "Preferences (DPO)"
    assert [*found] == ["Cold start (SFT): loss", f"{own}: pairs told apart", f"{own}: rewards", f"{own}: loss"]
    labels = [[curve.label for curve in chart.curves] for chart in found.values()]
    assert labels[0] == labels[1] == ["learnt", "kept aside"] and labels[2] == ["better reply", "worse reply"]


def test_held_out_accuracy_under_grpo_starts_where_the_cold_start_ended():
    metrics = [*rows("sft", "heldout_largest", [0.1, 0.25]), *rows("grpo", "heldout_largest", [0.5])]
    (curve,) = by_title(metrics)["GRPO: problems it was not trained on"].curves
    assert curve.points == [(0, 0.25), (1, 0.5)]


def test_a_task_has_one_colour_in_all_charts():
    metrics = [
        *rows("sft", "heldout_b", [0.1, 0.2]),
        *rows("grpo", "correct_a", [0.1, 0.2]),
        *rows("grpo", "correct_b", [0.1, 0.2]),
    ]
    colours = {curve.label: set() for chart in charts(metrics) for curve in chart.curves}
    for chart in charts(metrics):
        for curve in chart.curves:
            colours[curve.label].add(curve.colour)
    assert colours == {"a": {0}, "b": {1}}


def test_what_is_not_a_number_is_left_out():
    metrics = rows("grpo", "length", [10, None, "long", True, 20])
    metrics.append({"stage": "grpo", "length": 7})
    (curve,) = by_title(metrics)["GRPO: length of a reply"].curves
    assert curve.points == [(1, 10), (5, 20)]


def test_curves_of_different_steps_share_one_list_of_steps():
    metrics = rows("pretrain", "loss", [5.0, 4.0, 3.0])
    metrics[2]["validation_loss"] = 3.5
    drawn = by_title(metrics)["Pretraining: loss"].to_dict()
    assert drawn["steps"] == [1, 2, 3]
    series = {one["label"]: one["values"] for one in drawn["series"]}
    assert series["validation"] == [None, None, 3.5]
    assert series["next token"] == [5.0, 4.0, 3.0]
    json.dumps(drawn, allow_nan=False)


def test_thinning_keeps_the_mean_and_the_order():
    points = [(step, float(step % 7)) for step in range(3 * POINTS)]
    thinned = thin(points)
    assert len(thinned) == POINTS
    assert [step for step, _ in thinned] == sorted(step for step, _ in thinned)
    assert sum(v for _, v in thinned) / POINTS == pytest.approx(sum(v for _, v in points) / len(points))
    assert thin(points[:POINTS]) == points[:POINTS]


def test_smoothing_leaves_a_straight_line_and_its_ends_alone():
    straight = [(step, 2.0 * step) for step in range(200)]
    assert [v for _, v in smooth(straight)] == pytest.approx([v for _, v in straight])
    noisy = [(step, float(step % 2)) for step in range(200)]
    inner = [v for _, v in smooth(noisy)][20:-20]
    assert max(inner) - min(inner) < 0.2
