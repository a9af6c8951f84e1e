from __future__ import annotations

import math

import torch

import canvas
from reward.margin import ConceptReward
from reward.spec import ConceptSpec
from reward.teacher import Teacher

TARGET, NEAR, FAR = torch.eye(3)
ROW = torch.zeros(1, dtype=torch.int64)


def reward(*anchors: torch.Tensor) -> ConceptReward:
    return ConceptReward(TARGET[None], torch.stack(anchors)[None])


def between(angle: float) -> torch.Tensor:
    """(1, 1, 3): the target turned towards the first anchor by an angle."""
    return (math.cos(angle) * TARGET + math.sin(angle) * NEAR)[None, None]


def test_it_is_positive_once_an_anchor_clearly_wins_and_negative_on_the_target() -> None:
    for anchors in ((NEAR,), (NEAR, FAR)):
        assert reward(*anchors).margin(NEAR[None, None], ROW).item() > 0.5
        assert reward(*anchors).margin(TARGET[None, None], ROW).item() < -0.5


def test_with_one_anchor_it_is_twice_its_cosine_less_the_targets() -> None:
    for angle in (0.0, 0.4, 1.2):
        assert math.isclose(reward(NEAR).margin(between(angle), ROW).item(), 2 * math.sin(angle) - math.cos(angle), abs_tol=1e-6)


def test_what_has_no_name_is_worth_less_than_an_anchor_that_still_resembles_the_target() -> None:
    """Drawing nothing recognisable, far from target and anchors alike, must not be the cheap way out."""
    nameless = -0.3 * TARGET + 0.95 * FAR
    assert reward(NEAR).margin(nameless[None, None], ROW) < reward(NEAR).margin(between(1.0), ROW)


def test_nothing_is_gained_by_less_of_the_target_than_an_anchor_has_by_nature() -> None:
    related = 0.6 * TARGET + 0.8 * NEAR  # an anchor that shares something with the target, as a tree does with a tree
    natural = reward(related).margin(related[None, None], ROW)
    for lost in (0.3, 0.0, -0.5):  # the same nearness to the anchor, bought by losing what they share
        toward_near = (0.36 - 0.6 * lost + 0.64) / 0.8
        image = lost * TARGET + toward_near * NEAR
        torch.testing.assert_close(reward(related).margin(image[None, None], ROW), natural)


def test_it_rises_all_the_way_from_the_target_to_an_anchor() -> None:
    margins = torch.stack([reward(NEAR, FAR).margin(between(a), ROW).squeeze() for a in torch.linspace(0, math.pi / 2, 50).tolist()])
    assert (margins.diff() > 0).all()


def test_it_has_slope_where_the_target_wins_with_certainty() -> None:
    """A softmax over the same cosines is flat there: 1 - p moves a thousand times less."""
    embedding = between(0.0).requires_grad_()
    reward(NEAR, FAR).margin(embedding, ROW).sum().backward()
    assert embedding.grad is not None and embedding.grad.norm() > 0.5
    step = reward(NEAR, FAR).margin(between(0.1), ROW) - reward(NEAR, FAR).margin(between(0.0), ROW)
    assert step.item() > 0.02


def test_several_anchors_count_between_their_mean_and_their_best() -> None:
    embedding = between(1.0)
    best = reward(NEAR).margin(embedding, ROW).item()
    worst = reward(FAR).margin(embedding, ROW).item()
    assert (best + worst) / 2 <= reward(NEAR, FAR).margin(embedding, ROW).item() <= best


def test_each_row_has_its_own_target_and_anchors() -> None:
    both = ConceptReward(torch.stack([TARGET, NEAR]), torch.stack([NEAR, TARGET])[:, None])
    margins = both.margin(NEAR.expand(2, 3, 3), torch.tensor([0, 1]))
    assert margins.shape == (2, 3)
    torch.testing.assert_close(margins, torch.tensor([[2.0], [-1.0]]).expand(2, 3))
    gone, nearest, column = both.forgotten(NEAR.expand(2, 3), torch.tensor([0, 1]))
    assert gone.tolist() == [True, False] and nearest.tolist() == [1.0, 0.0] and column.tolist() == [0, 0]


def test_rows_of_fewer_anchors_are_padded_without_effect() -> None:
    teacher = Teacher.from_pretrained(f"local-dir:{canvas.CLIP}")
    spec = ConceptSpec(["cat"], ["a cat", "cats"], ["a tree", "a car", "a house"], [["a tree"], ["a tree", "a car", "a house"]])
    made = ConceptReward.from_spec(spec, teacher)
    assert made.target.shape == (2, 64) and made.anchors.shape == (2, 3, 64)
    alone = ConceptReward(teacher.encode_text(["a cat"]), teacher.encode_text(["a tree"])[None])
    image = torch.nn.functional.normalize(torch.randn(1, 1, 64), dim=-1)
    torch.testing.assert_close(made.margin(image, ROW), alone.margin(image, ROW), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.target, teacher.encode_text(spec.forget_prompts))
