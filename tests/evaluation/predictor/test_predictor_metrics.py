from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from evaluation.predictor.metrics import auc, foresight, mean_of, pearson, ranks, spearman, within_prompts


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_ranks_share_ties() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert ranks(torch.ones(4)).tolist() == [2.5] * 4
    values = torch.randint(0, 9, (60,), generator=torch.Generator().manual_seed(0)).float()
    brute = [(values < v).sum().item() + ((values == v).sum().item() + 1) / 2 for v in values]
    assert ranks(values).tolist() == brute


@pytest.mark.parametrize("levels", [3, 1000])
def test_auc_is_the_share_of_pairs_in_the_right_order(levels: int) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(0, levels, (80,), generator=generator).float()
    positive = torch.rand(80, generator=generator) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive].tolist() for b in scores[~positive].tolist()]
    assert math.isclose(auc(scores, positive), sum(pairs) / len(pairs), rel_tol=1e-12)


def test_auc_is_one_half_for_a_constant_and_nothing_for_one_class() -> None:
    labels = torch.tensor([True, False, True, False])
    assert auc(torch.zeros(4), labels) == 0.5
    assert (
        auc(torch.tensor([2.0, 1.0, 4.0, 0.0]), labels) == 1.0
        and auc(torch.tensor([0.0, 1.0, 0.0, 2.0]), labels) == 0.0
    )
    assert math.isnan(auc(torch.zeros(4), torch.ones(4, dtype=torch.bool))) and math.isnan(
        auc(torch.zeros(4), torch.zeros(4, dtype=torch.bool))
    )


def test_spearman_sees_order_and_pearson_lines() -> None:
    a = drawn(50)
    assert math.isclose(spearman(a, a.exp()), 1.0) and math.isclose(spearman(a, -(a**3)), -1.0)
    assert pearson(a, a.exp()) < 0.95 and math.isclose(pearson(a, 3 * a + 1), 1.0)
    assert abs(spearman(a, drawn(50, seed=1))) < 0.4
    assert math.isnan(spearman(a, torch.ones(50)))
    # Ties: the value that the textbook formula of Pearson's coefficient on mid-ranks gives.
    assert math.isclose(
        spearman(torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])), 0.9486832980505138
    )


def test_what_is_undefined_is_left_out_of_means() -> None:
    assert mean_of([1.0, math.nan, 3.0]) == 2.0
    assert math.isnan(mean_of([math.nan])) and math.isnan(mean_of([]))


def test_foresight_is_perfect_for_the_truth_and_chance_for_noise() -> None:
    texts, truth = F.normalize(drawn(5, 16), dim=1), F.normalize(drawn(400, 16, seed=1), dim=1)
    perfect = foresight(truth, truth, texts)
    assert (
        perfect["auc"] > 0.9
        and math.isclose(perfect["spearman"], 1.0)
        and math.isclose(perfect["cosine"], 1.0, abs_tol=1e-5)
    )
    chance = foresight(F.normalize(drawn(400, 16, seed=2), dim=1), truth, texts)
    assert abs(chance["auc"] - 0.5) < 0.05 and abs(chance["spearman"]) < 0.1 and abs(chance["cosine"]) < 0.1
    between = foresight(F.normalize(truth + 0.25 * drawn(400, 16, seed=2), dim=1), truth, texts)
    for name in perfect:
        assert chance[name] < between[name] < perfect[name]


def test_knowing_the_prompt_alone_is_worth_nothing_within_prompts() -> None:
    texts, rows = F.normalize(drawn(4, 16), dim=1), torch.arange(200) % 4
    truth = F.normalize(texts[rows] + 0.3 * drawn(200, 16, seed=1), dim=1)
    knows_prompt = F.normalize(texts[rows] + 0.001 * drawn(200, 16, seed=2), dim=1)
    assert foresight(knows_prompt, truth, texts)["auc"] > 0.95
    assert abs(within_prompts(knows_prompt, truth, texts, rows)) < 0.2
    assert math.isclose(within_prompts(truth, truth, texts, rows), 1.0)
    assert math.isnan(within_prompts(truth[:8], truth[:8], texts, rows[:8]))  # two states a prompt
