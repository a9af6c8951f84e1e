"""What the flags ask of a base: its resolution and what it predicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub.header import base_header
from pipelines.backbone import Backbone
from pipelines.base import BaseConfig, load_base
from pipelines.generate import draw


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_it_draws_at_the_resolution_that_is_asked(kind: str, pipeline_dirs: dict[str, Path]) -> None:
    own = Backbone.of(load_base(BaseConfig(str(pipeline_dirs[kind])))).image_size
    side = own[0] // 2
    pipe = load_base(BaseConfig(str(pipeline_dirs[kind]), resolution=side))
    assert Backbone.of(pipe).image_size == (side, side) and own == (2 * side, 2 * side)
    (image,) = draw(pipe, [("a cat", 0)], num_inference_steps=1)
    assert image.size == (side, side)
    assert base_header(pipe)["modelspec.resolution"] == f"{side}x{side}"


@pytest.mark.parametrize("resolution", [3, 7, 24, 2048])
def test_what_it_cannot_draw_is_refused(resolution: int, pipeline_dirs: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=rf"--resolution {resolution} must be a multiple of \d+ and at most"):
        load_base(BaseConfig(str(pipeline_dirs["sd1"]), resolution=resolution))


@pytest.mark.parametrize("predicted", ["v_prediction", "sample"])
def test_it_predicts_what_is_asked(predicted: str, pipeline_dirs: dict[str, Path]) -> None:
    base = BaseConfig(str(pipeline_dirs["sd1"]))
    assert load_base(base).scheduler.config.prediction_type == "epsilon"
    pipe = load_base(BaseConfig(str(pipeline_dirs["sd1"]), prediction_type=predicted))
    assert pipe.scheduler.config.prediction_type == predicted
    assert Backbone.of(pipe).deterministic_sampler().config.prediction_type == predicted
    assert type(pipe.scheduler) is type(load_base(base).scheduler)
