from __future__ import annotations

import math
from dataclasses import replace

import torch

import canvas
from reward.concept import ConceptSpec
from reward.margin import ConceptReward, Exemplars
from reward.teacher import Teacher

TARGET, NEAR, FAR = torch.eye(3)
ROW = torch.zeros(1, dtype=torch.int64)


def reward(*anchors: torch.Tensor) -> ConceptReward:
    return ConceptReward.from_embeddings(TARGET[None], torch.stack(anchors)[None])


def between(angle: float) -> torch.Tensor:
    """(1, 1, 3): the target turned towards the first anchor by an angle."""
    return (math.cos(angle) * TARGET + math.sin(angle) * NEAR)[None, None]


def test_it_is_positive_once_an_anchor_clearly_wins_and_negative_on_the_target() -> None:
    for anchors in ((NEAR,), (NEAR, FAR)):
        assert reward(*anchors).margin(NEAR[None, None], ROW).item() > 0.5
        assert reward(*anchors).margin(TARGET[None, None], ROW).item() < -0.5


def test_with_one_anchor_it_is_twice_its_cosine_less_the_targets() -> None:
    for angle in (0.0, 0.4, 1.2):
        assert math.isclose(
            reward(NEAR).margin(between(angle), ROW).item(),
            2 * math.sin(angle) - math.cos(angle),
            abs_tol=1e-6,
        )


def test_what_has_no_name_is_worth_less_than_an_anchor_that_still_resembles_the_target() -> None:
    """Drawing nothing recognisable, far from target and anchors alike, must not be the cheap way out."""
    nameless = -0.3 * TARGET + 0.95 * FAR
    assert reward(NEAR).margin(nameless[None, None], ROW) < reward(NEAR).margin(between(1.0), ROW)


def test_nothing_is_gained_by_less_of_the_target_than_an_anchor_has_by_nature() -> None:
    related = (
        0.6 * TARGET + 0.8 * NEAR
    )  # an anchor that shares something with the target, as a tree does with a tree
    natural = reward(related).margin(related[None, None], ROW)
    for lost in (0.3, 0.0, -0.5):  # the same nearness to the anchor, bought by losing what they share
        toward_near = (0.36 - 0.6 * lost + 0.64) / 0.8
        image = lost * TARGET + toward_near * NEAR
        torch.testing.assert_close(reward(related).margin(image[None, None], ROW), natural)


def test_it_rises_all_the_way_from_the_target_to_an_anchor() -> None:
    margins = torch.stack(
        [
            reward(NEAR, FAR).margin(between(a), ROW).squeeze()
            for a in torch.linspace(0, math.pi / 2, 50).tolist()
        ]
    )
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
    both = ConceptReward.from_embeddings(torch.stack([TARGET, NEAR]), torch.stack([NEAR, TARGET])[:, None])
    margins = both.margin(NEAR.expand(2, 3, 3), torch.tensor([0, 1]))
    assert margins.shape == (2, 3)
    torch.testing.assert_close(margins, torch.tensor([[2.0], [-1.0]]).expand(2, 3))
    gone, nearest, column = both.forgotten(NEAR.expand(2, 3), torch.tensor([0, 1]))
    assert gone.tolist() == [True, False] and nearest.tolist() == [1.0, 0.0] and column.tolist() == [0, 0]


def test_rows_of_fewer_anchors_are_padded_without_effect() -> None:
    teacher = Teacher.from_pretrained(f"local-dir:{canvas.CLIP}")
    spec = ConceptSpec(
        ["cat"],
        ["a cat", "cats"],
        ["a tree", "a car", "a house"],
        [["a tree"], ["a tree", "a car", "a house"]],
    )
    made = ConceptReward.from_spec(spec, teacher)
    assert made.target.shape == (2, 64) and made.anchors.shape == (2, 3, 64)
    one = ConceptReward.from_embeddings(teacher.encode_text(["a cat"]), teacher.encode_text(["a tree"])[None])
    alone = replace(one, contrast=made.contrast)
    image = torch.nn.functional.normalize(torch.randn(1, 1, 64), dim=-1)
    torch.testing.assert_close(made.margin(image, ROW), alone.margin(image, ROW), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.target, teacher.encode_text(spec.forget_prompts))


def unit(*values: float) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(values), dim=0)


CONCEPT_IMAGES = torch.stack([unit(1.0, 0.2, 0.1), unit(1.0, 0.1, 0.3)])
OTHER_IMAGES = torch.stack([unit(0.3, 1.0, 0.1), unit(0.2, 1.0, 0.0), unit(0.1, 0.2, 1.0)])
IS_ANCHOR = torch.tensor([[True, True, False]])


def test_calibration_takes_what_the_base_draws_for_the_anchors_as_natural() -> None:
    made = reward(NEAR).calibrated(CONCEPT_IMAGES, torch.zeros(2, dtype=torch.int64), OTHER_IMAGES, IS_ANCHOR)
    natural = OTHER_IMAGES[:2, 0].mean()
    torch.testing.assert_close(made.natural, natural[None])
    assert math.isclose(made.contrast, (CONCEPT_IMAGES[:, 0].mean() - natural).item(), abs_tol=1e-6)


def test_without_an_image_of_its_anchors_a_row_takes_all_other_images() -> None:
    made = reward(NEAR).calibrated(
        CONCEPT_IMAGES, torch.zeros(2, dtype=torch.int64), OTHER_IMAGES, torch.zeros(1, 3, dtype=torch.bool)
    )
    torch.testing.assert_close(made.natural, OTHER_IMAGES[:, 0].mean()[None])


def test_where_texts_lie_far_from_images_only_a_calibrated_reward_sees_the_target() -> None:
    """In a real CLIP two texts have a cosine of 0.8, a text and its image one of 0.3: measured on texts,
    every image would be natural."""
    texts = torch.nn.functional.normalize(
        torch.cat([0.45 * torch.eye(3), torch.ones(3, 1)], dim=1), dim=1
    )  # the last axis is what images lack
    images = torch.nn.functional.pad(torch.cat([CONCEPT_IMAGES, OTHER_IMAGES]), (0, 1))
    by_text = ConceptReward.from_embeddings(texts[:1], texts[None, 1:2])
    assert by_text.natural.item() > 0.8 and (images @ texts.T).max() < 0.45
    more = torch.stack([images[2] + 0.3 * TARGET_4, images[2] + 0.4 * TARGET_4])[
        None
    ]  # the same anchor's image with more of the target
    assert by_text.margin(more, ROW).diff().abs() < 1e-6
    assert (
        by_text.calibrated(images[:2], torch.zeros(2, dtype=torch.int64), images[2:], IS_ANCHOR)
        .margin(more, ROW)
        .diff()
        < -0.01
    )


TARGET_4 = torch.eye(4)[0]


def test_exemplars_are_put_on_the_scale_of_the_text() -> None:
    """Whatever the cosines between images are, the means on images of the concept and on others are those
    of the text."""
    shown = Exemplars.from_images(torch.stack([unit(1.0, 0.5, 0.5), unit(1.0, 0.4, 0.6)]), text_share=0.0)
    plain = reward(NEAR)
    by_images = replace(plain, exemplars=shown).calibrated(
        CONCEPT_IMAGES, torch.zeros(2, dtype=torch.int64), OTHER_IMAGES, IS_ANCHOR
    )
    for images in (CONCEPT_IMAGES, OTHER_IMAGES):
        rows = torch.zeros(len(images), dtype=torch.int64)
        torch.testing.assert_close(
            by_images.target_score(images[:, None], rows).mean(),
            plain.target_score(images[:, None], rows).mean(),
        )


def test_exemplars_join_the_text_by_its_share() -> None:
    shown = Exemplars(unit(0.0, 1.0, 0.0), scale=0.5, shift=0.1, text_share=0.25)
    both = replace(reward(FAR), exemplars=shown)
    image = unit(0.6, 0.8, 0.0)
    assert math.isclose(
        both.target_score(image[None, None], ROW).item(), 0.25 * 0.6 + 0.75 * (0.5 * 0.8 + 0.1), abs_tol=1e-6
    )


def test_exemplars_that_tell_nothing_apart_are_not_blown_up() -> None:
    shown = Exemplars.from_images(torch.ones(1, 3), text_share=0.0)
    same = torch.ones(2, 3) / math.sqrt(3)
    made = replace(reward(NEAR), exemplars=shown).calibrated(
        same, torch.zeros(2, dtype=torch.int64), same, torch.ones(1, 2, dtype=torch.bool)
    )
    assert made.exemplars is not None and made.exemplars.scale == 1.0 and made.contrast > 0


def test_the_shortfall_goes_from_images_of_the_concept_to_images_of_its_anchors() -> None:
    rows = torch.zeros(2, dtype=torch.int64)
    made = reward(NEAR).calibrated(CONCEPT_IMAGES, rows, OTHER_IMAGES, IS_ANCHOR)
    concept, anchors = (
        made.margin(images[:, None], rows).squeeze(1) for images in (CONCEPT_IMAGES, OTHER_IMAGES[:2])
    )
    ends = torch.stack([concept.mean(), anchors.mean()])
    torch.testing.assert_close(
        made.shortfall(torch.cat([ends, ends.mean()[None], ends[:1] - 1, ends[1:] + 1])),
        torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0]),
    )


def test_without_images_of_the_anchors_the_way_to_them_is_that_of_both_cosines() -> None:
    nowhere = torch.zeros(1, 3, dtype=torch.bool)
    made = reward(NEAR).calibrated(CONCEPT_IMAGES, torch.zeros(2, dtype=torch.int64), OTHER_IMAGES, nowhere)
    assert math.isclose(made.to_anchors - made.from_concept, 3 * made.contrast, abs_tol=1e-6)
