from __future__ import annotations

import re
import time

import torch

from training.plan import Amounts, Costs, costs_in_words, duration, listing, probe

AMOUNTS = Amounts(
    before=128, drawn=48, learnt=32, iterations=40, cooldown=3, evaluated=96, evaluation_steps=30, steps=15
)
COSTS = Costs(draw=0.5, learn=1.0, memory=3000.0)


def test_the_seconds_of_every_stage() -> None:
    assert AMOUNTS.seconds(COSTS) == {
        "before": 64.0,
        "iteration": 24.0 + 32.0,
        "cooldown": 96.0,
        "evaluation": 96.0,
    }


def test_in_words() -> None:
    words = costs_in_words(AMOUNTS, COSTS)
    assert re.findall(r"\d+", words["Images"]) == ["128", "48", "96"]
    # Before training, an iteration, the evaluation, and all iterations at most with both.
    assert re.findall(r"\d:\d\d:\d\d", words["Time"]) == ["0:01:04", "0:00:56", "0:01:36", "0:41:36"]
    assert " 40 " in words["Time"] and "3.0 GB" in words["Memory"]
    assert duration(0.2) == "0:00:01"


def test_a_list_shows_its_length_and_its_beginning() -> None:
    assert listing(["a", "b"]) == '2: "a", "b"'
    assert listing(list("abcdef")) == '6: "a", "b", "c", "d", …'


def test_a_probe_times_an_image_of_each() -> None:
    costs = probe(lambda: time.sleep(0.02), lambda: time.sleep(0.08), images=4, device=torch.device("cpu"))
    assert costs.draw >= 0.005 and costs.learn >= 0.02
    assert costs.memory is None or costs.memory > 50  # torch alone takes more
