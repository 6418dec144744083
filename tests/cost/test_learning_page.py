"""The page of a plan of reinforcement learning: it stands alone, its figures are the plan's, it works in a browser."""

from __future__ import annotations

import json

import pytest

from leanseek.cost.carbon import parse_grid
from leanseek.cost.layout import parse_layout
from leanseek.cost.learning import SPLITS, Learning, plan_learning, ways
from leanseek.cost.learning_page import learning_figures, learning_page
from leanseek.cost.machines import parse_machines
from leanseek.cost.planner import config_of
from leanseek.errors import UsageError
from tests.cost.pages import MOVE, check_alone, opened

FRANCE = parse_grid("france")
LAYOUT = parse_layout("pp=8,ep=64,schedule=dualpipe,recompute=full,precision=fp8")


@pytest.fixture(scope="module")
def r1():
    task = Learning(config_of("deepseek-v3"), 8200, 512, 16, 512, 8000, 32768)
    return plan_learning(task, parse_machines("512xh800"), LAYOUT)


def test_it_needs_nothing_and_runs_only_its_own_script(r1):
    text = learning_page("<b>R1 & more</b>", r1, FRANCE)
    data = json.loads(check_alone(text, "R1 &amp; more"))
    assert data["planned"]["steps"] == 8200 and data["replies"] == [4000, 8000, 16000]
    assert text.count('id="sample-') == 1 + len(SPLITS) and "512" in text


def test_its_figures_are_the_plans(r1):
    data = learning_figures(r1)
    asked = data["planned"]
    split, sample_s, train_s = data["hardware"]["h800"]["ways"][asked["reply"]][asked["way"]]
    assert (split, sample_s, train_s) == pytest.approx((r1.split, r1.sample_s, r1.train_s))
    hours = asked["steps"] / data["updates"] * max(sample_s, train_s) / 3600
    assert hours == pytest.approx(r1.hours) and hours * data["devices"] * asked["price"] == pytest.approx(r1.usd)
    assert hours * data["units"] == pytest.approx(r1.device_hours)
    assert hours * 3600 * data["hardware"]["h800"]["watts"] * 512 == pytest.approx(r1.joules)
    short, planned, long = (min(max(s, t) for _, s, t in one[1:]) for one in data["hardware"]["h800"]["ways"])
    assert short < planned < long
    assert {"h200", "b200"} <= data["hardware"].keys()


def test_the_best_way_is_the_plan(r1):
    found = ways(r1.learning, r1.machines, LAYOUT)
    assert [one.split for one in found] == [None, *SPLITS] and min(one.round_s for one in found) == r1.round_s


def test_a_layout_that_does_not_fit_says_by_how_much(r1):
    with pytest.raises(UsageError, match=r"B too many: pp=.* fits"):
        plan_learning(r1.learning, r1.machines, parse_layout("pp=4,ep=64,precision=fp8"))


@pytest.mark.browser
def test_sliders_work_in_a_browser_without_a_network(tmp_path, r1):
    with opened(tmp_path, learning_page("R1", r1, FRANCE)) as browser:
        hours = float(browser.text("#hours"))
        assert hours == pytest.approx(r1.hours, rel=1e-3) and browser.text("#way-said") == f"{100 * r1.split:g}%"
        browser.run(MOVE, "way", 0)
        assert browser.text("#way-said") == "in turn" and float(browser.text("#hours")) > hours
        place = browser.run("return document.getElementById('chosen').getAttribute('x')")
        browser.run(MOVE, "way", 4)
        assert browser.text("#way-said") == "25%"
        assert browser.run("return document.getElementById('chosen').getAttribute('x')") != place
        before = float(browser.text("#hours"))
        browser.run(MOVE, "reply", 2)
        assert browser.text("#reply-said") == "16,000" and float(browser.text("#hours")) > before
        browser.run(MOVE, "steps", 0)
        assert browser.text("#steps-said") == "82"
        browser.run(MOVE, "hardware", "b200")
        assert browser.complaints() == []
