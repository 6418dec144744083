"""The page of a plan: self-contained, its figures those of the plan, its drawings there; and it works in a browser."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from leanseek.cost.carbon import parse_grid
from leanseek.cost.hardware import all_hardware
from leanseek.cost.page import figures, plan_page
from leanseek.cost.planner import plan
from tests.cost.pages import MOVE, Parsed, check_alone, opened

WORLD = parse_grid("world")
LAYOUTS = ("pp=16,ep=64,schedule=dualpipe", "pp=8,ep=64,schedule=dualpipev", "pp=16,ep=8,schedule=zbv,recompute=full")


@pytest.fixture(scope="module")
def v3():
    return plan("deepseek-v3", "2048xh800", "14.8T", layout=LAYOUTS[0])


def test_it_needs_nothing_and_runs_only_its_own_script(v3):
    check_alone(plan_page("<b>V3 & more</b>", v3, WORLD), "V3 &amp; more")


@pytest.mark.parametrize("price", [None, "$3/h"])
def test_its_figures_are_the_plans(price):
    v3 = plan("deepseek-v3", "2048xh800", "14.8T", layout=LAYOUTS[0], price=price)
    data = json.loads(Parsed(plan_page("V3", v3, parse_grid("france"))).scripts[0])
    asked, row = data["planned"], data["hardware"][data["planned"]["hardware"]]
    hours = asked["tokens"] * data["flops_per_token"] / (row["flops"] * asked["mfu"]) / 3600
    assert hours == pytest.approx(v3.device_hours) and hours * asked["price"] == pytest.approx(v3.usd)
    assert hours / asked["devices"] / 24 == pytest.approx(v3.days)
    assert hours * row["watts"] * 3600 == pytest.approx(v3.joules) and data["grams_per_kwh"] == 56
    assert data["hardware"].keys() >= all_hardware().keys()


def test_what_was_measured_or_is_many_cores_is_a_row_of_its_own():
    small = plan("laptop", "2xvirtual-cpu", "4M", length=128)
    data = figures(small)
    row = data["hardware"][data["planned"]["hardware"]]
    assert data["planned"]["hardware"] == "planned" and row["watts"] == small.machines.device.watts
    hours = data["planned"]["tokens"] * data["flops_per_token"] / (row["flops"] * data["planned"]["mfu"]) / 3600
    assert hours == pytest.approx(small.hours)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pipeline_is_drawn_device_by_device(layout):
    found = plan("deepseek-v3", "2048xh800", "14.8T", layout=layout)
    drawing = re.search(r'id="pipeline">(.*?)</svg>', plan_page("V3", found, WORLD), re.DOTALL)
    assert drawing is not None
    blocks = re.findall(r'<rect class="f(\d)" x="([\d.]+)" y="(\d+)" width="([\d.]+)"', drawing[1])
    rows = {int(y) for _, _, y, _ in blocks}
    assert len(rows) == found.layout.pp
    for row in rows:
        # What one device does never overlaps; a tenth is the rounding of the drawing.
        places = sorted((float(x), float(x) + float(width)) for _, x, y, width in blocks if int(y) == row)
        assert all(end <= start + 0.1 for (_, end), (start, _) in itertools.pairwise(places))
        assert places[-1][1] <= 1000


def test_memory_and_costs_are_drawn_to_scale(v3):
    text = plan_page("V3", v3, WORLD)
    parts, memory = (re.findall(r'<rect class="f\d" x="[\d.]+" y="0" width="([\d.]+)"', one) for one in
                     re.findall(r'<svg class="bars".*?</svg>', text, re.DOTALL))  # fmt: skip
    assert sum(map(float, parts)) == pytest.approx(1000, abs=1)
    room = max(v3.memory.total, v3.machines.device.memory_bytes)
    assert sum(map(float, memory)) == pytest.approx(1000 * v3.memory.total / room, abs=1)
    assert text.count("<circle") >= 2 * 8 and 'class="limit"' in text and "of the roof" in text


def test_one_device_waits_for_nobody():
    assert "nobody waits" in plan_page("small", plan("deepseek-v2-lite", "8xh100", "1T", layout="ep=8,zero=3"), WORLD)


@pytest.mark.browser
def test_sliders_work_in_a_browser_without_a_network(tmp_path, v3):
    with opened(tmp_path, plan_page("V3", v3, WORLD)) as browser:
        assert browser.text("#hours") == "2.926M" and browser.text("#energy").endswith("GWh")
        browser.run(MOVE, "mfu", round(2000 * v3.mfu))
        assert browser.text("#hours").startswith("1.46") and browser.text("#hours").endswith("M")
        browser.run(MOVE, "price", 100)
        assert browser.text("#money").startswith("$1.46")
        browser.run(MOVE, "tokens", 0)
        assert browser.text("#tokens-said") == "148B" and browser.text("#hours").startswith("14.6")
        browser.run(MOVE, "hardware", "h20")
        assert float(browser.text("#hours")[:-1]) > 14.7
        assert browser.complaints() == []
