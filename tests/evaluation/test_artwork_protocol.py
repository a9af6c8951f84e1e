"""The protocol of artwork: its prompts, what an image shows, and the metrics of what no name says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from evaluation.artwork import ArtworkExamination, Object, World, told
from evaluation.choice import ExaminationConfig, choose_examination
from evaluation.examination import Examination
from evaluation.judge import Judge
from evaluation.metrics import IN_DOMAIN
from evaluation.protocol import evaluate, list_jobs, table
from hub.adapter import load_adapter
from pipelines.base import load_pipeline

STYLES = ["Flat", "Line"]
OBJECTS = ["cat", "dog", "fox", "pear", "plum"]
WORLD = World(
    "{said} in {style} style",
    {
        "cat": Object("a cat", ("a kitten",), ("an animal", "a pet"), "mammal"),
        "dog": Object("a dog", (), ("an animal", "a pet"), "mammal"),
        "fox": Object("a fox", (), ("an animal",), "mammal"),
        "pear": Object("a pear", (), (), "fruit"),
        "plum": Object("a plum", (), (), "fruit"),
    },
    2.5,
)


class ColourJudge(Judge):
    """Sees a style in the top row's colour, and an object in the bottom row's two."""

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        levels = ((pixels[:, 0] + 1) * 127.5).round().long() // 10
        levels[:, 0], levels[:, 1] = levels[:, 0] % len(STYLES), levels[:, 1] % len(OBJECTS)
        style = torch.nn.functional.one_hot(levels[:, 0, 0], len(STYLES)).float()
        objects = torch.full((len(pixels), len(OBJECTS)), -1.0)
        for column, strength in ((0, 3.0), (1, 2.0)):
            objects.scatter_(1, levels[:, 1, column, None], strength)
        return {"style": style, "object": objects}


@pytest.fixture
def judge() -> Judge:
    domains = {"style": STYLES, "object": OBJECTS}
    return ColourJudge(domains, "a {object} in {style} style", 2, (4,), several=["object"])


def picture(style: str, first: str, second: str | None = None) -> Image.Image:
    """Of two pixels' width and height, as `ColourJudge` reads it."""
    image = Image.new("RGB", (2, 2))
    image.putpixel((0, 0), (10 * STYLES.index(style) + 5, 0, 0))
    image.putpixel((0, 1), (10 * OBJECTS.index(first) + 5, 0, 0))
    image.putpixel((1, 1), (10 * OBJECTS.index(second or first) + 5, 0, 0))
    return image


def prompts_of(examination: ArtworkExamination, role: str) -> list[str]:
    return [cell.prompt for cell in examination.cells if role in {of for _, of in cell.asked}]


def test_an_object_is_drawn_by_name_by_synonym_by_category_and_beside_another(judge: Judge) -> None:
    examination = ArtworkExamination(judge, WORLD, ["cat"], "judge")
    seeds = dict(zip(examination.prompts, examination.seeds_by_prompt(), strict=True))
    assert prompts_of(examination, "forget") == ["a cat in Flat style", "a cat in Line style"]
    assert prompts_of(examination, "synonym") == ["a kitten in Flat style", "a kitten in Line style"]
    assert len(seeds["a cat in Flat style"]) == len(seeds["a kitten in Line style"]) == 12
    assert set(prompts_of(examination, "category")) == {
        f"{said} in {style} style" for said in ("an animal", "a pet") for style in STYLES
    }
    assert len(seeds["a pet in Flat style"]) == 100
    pairs = prompts_of(examination, "pair")
    assert len(pairs) == 8 and {"a cat and a dog in Flat style", "a dog and a cat in Flat style"} <= set(
        pairs
    )
    assert len(seeds["a dog in Flat style"]) == 1
    assert set(examination.guidance_by_prompt()) == {2.5}
    assert set(prompts_of(examination, "neighbour")) == {
        f"a {name} in {style} style" for name in ("dog", "fox") for style in STYLES
    }
    assert all(cell.forget == (i not in kept(examination)) for i, cell in enumerate(examination.cells))


def kept(examination: ArtworkExamination) -> list[int]:
    return [i for i, cell in enumerate(examination.cells) if ("object", IN_DOMAIN) in cell.asked]


def test_half_of_what_is_kept_is_told(judge: Judge) -> None:
    examination = ArtworkExamination(judge, WORLD, ["cat"], "judge")
    assert told(OBJECTS, {"cat"}) == ["dog", "pear"]
    of = {role: prompts_of(examination, role) for role in ("told", "untold", IN_DOMAIN)}
    assert set(of["told"]) == {f"a {name} in {style} style" for name in ("dog", "pear") for style in STYLES}
    assert not set(of["told"]) & set(of["untold"])
    assert set(of["told"]) | set(of["untold"]) == set(of[IN_DOMAIN])


def test_of_two_objects_both_are_seen(judge: Judge) -> None:
    examination = ArtworkExamination(judge, WORLD, ["cat"], "judge")
    (pair,) = (i for i, p in enumerate(examination.prompts) if p == "a fox and a cat in Line style")
    images = [picture("Flat", "fox", "cat"), picture("Flat", "fox", "dog"), picture("Flat", "dog", "pear")]
    seen = examination.examine(images, [pair] * 3)
    assert [(verdict["object"], verdict["other"]) for verdict in seen] == [
        ("cat", "fox"),
        ("fox", "fox"),
        ("dog", "dog"),
    ]
    scores = examination.scores(seen, [pair] * 3)
    assert scores["UA_pairs"].percent() == pytest.approx(200 / 3)
    assert scores["other_of_two"].percent() == pytest.approx(200 / 3)
    assert scores["UA"].percent() is None and scores["UA_categories"].percent() is None


def test_each_kind_of_prompt_has_its_metric(judge: Judge) -> None:
    """Of the concept: gone by name, there by synonym, and one of four by category."""
    examination = ArtworkExamination(judge, WORLD, ["cat"], "judge")
    ids = {prompt: i for i, prompt in enumerate(examination.prompts)}
    shown = {
        "a cat in Flat style": [picture("Flat", "dog")],
        "a kitten in Flat style": [picture("Flat", "cat")],
        "an animal in Line style": [picture("Line", name) for name in ("cat", "dog", "dog", "fox")],
        "a dog in Flat style": [picture("Flat", "dog")],
        "a fox in Flat style": [picture("Line", "plum")],
    }
    which = [ids[prompt] for prompt, images in shown.items() for _ in images]
    seen = examination.examine([image for images in shown.values() for image in images], which)
    found = {name: of.percent() for name, of in examination.scores(seen, which).items()}
    assert found["UA"] == 100 and found["UA_synonyms"] == 0 and found["UA_categories"] == 75
    assert found["IRA"] == 50 and found["IRA_told"] == 100 and found["IRA_untold"] == 0 and found["NRA"] == 50
    assert found["CRA"] == pytest.approx(200 / 3) and found["UA_pairs"] is None
    classes = examination.per_class(seen, which)
    assert classes["an animal"] == {"cat": 25, "dog": 50, "fox": 25}
    assert classes["object"] == {"cat": 0, "dog": 100, "fox": 0}


def test_a_style_is_drawn_by_name_alone_and_of_two_objects(judge: Judge) -> None:
    examination = ArtworkExamination(judge, WORLD, ["Flat style"], "judge")
    assert set(prompts_of(examination, "forget")) == {f"a {name} in Flat style" for name in OBJECTS}
    assert prompts_of(examination, "category") == [f"a {name}" for name in OBJECTS]
    pairs = prompts_of(examination, "pair")
    assert len(pairs) == len(OBJECTS) and all(prompt.endswith("in Flat style") for prompt in pairs)
    (pair,) = (i for i, p in enumerate(examination.prompts) if p == "a cat and a fox in Flat style")
    alone = examination.prompts.index("a cat")
    images = [picture("Line", "cat", "fox"), picture("Flat", "cat"), picture("Flat", "cat")]
    seen = examination.examine(images, [pair, pair, alone])
    found = {name: of.percent() for name, of in examination.scores(seen, [pair, pair, alone]).items()}
    assert found["UA_pairs"] == 50 and found["other_of_two"] == 75 and found["UA_categories"] == 0
    assert examination.per_class(seen, [pair, pair, alone])["in no style"] == {"Flat": 100}


def test_two_concepts_share_the_images_of_no_prompt(judge: Judge) -> None:
    examination = ArtworkExamination(judge, WORLD, ["cat", "pear"], "judge")
    named = Counter(prompts_of(examination, "forget") + prompts_of(examination, IN_DOMAIN))
    assert max(named.values()) == 1
    assert not any("cat and a pear" in prompt or "pear and a cat" in prompt for prompt in examination.prompts)


def test_the_world_beside_a_judge_is_read_again(judge: Judge, tmp_path: Path) -> None:
    WORLD.save(tmp_path)
    assert World.read(tmp_path, judge) == WORLD


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_text("{"),
        lambda file: file.write_text("[]"),
        lambda file: file.write_text(json.dumps({"wording": "{colour}", "objects": {}})),
        lambda file: file.write_text(file.read_text().replace("plum", "prune")),
        lambda file: file.write_text(file.read_text().replace('"a kitten"', "3")),
        lambda file: file.write_text(file.read_text().replace("2.5", "-1")),
        lambda file: file.write_text(file.read_text().replace("2.5", '"2.5"')),
    ],
    ids=[
        *("missing", "no JSON", "a list", "another field", "another object", "no text"),
        *("below zero", "a text"),
    ],
)
def test_a_damaged_world_is_named(judge: Judge, tmp_path: Path, damage) -> None:
    WORLD.save(tmp_path)
    damage(tmp_path / "world.json")
    with pytest.raises(ValueError, match=r"world\.json"):
        World.read(tmp_path, judge)


def test_a_judge_of_one_object_will_not_do(tmp_path: Path) -> None:
    WORLD.save(tmp_path)
    plain = Judge({"style": STYLES, "object": OBJECTS}, "", 2, (4,))
    with pytest.raises(ValueError, match="several"):
        World.read(tmp_path, plain)


def test_it_is_chosen_with_the_judge_of_a_world(judge: Judge, tmp_path: Path) -> None:
    WORLD.save(tmp_path)
    Judge(judge.domains, judge.prompt, 2, (4,), several=["object"]).save_pretrained(tmp_path)

    def chosen(**given: str) -> Examination:
        config = ExaminationConfig(adapter="", protocol="artwork", **given)
        return choose_examination(
            config, ["cat"], bundled=False, teacher=None, clip_name=None, device=torch.device("cpu")
        )

    examination = chosen(judge_name_or_path=str(tmp_path))
    assert isinstance(examination, ArtworkExamination) and examination.protocol == "artwork"
    with pytest.raises(ValueError, match="--judge_name_or_path"):
        chosen()


def test_base_and_adapter_are_judged_by_it(
    judge: Judge, tiny_pipeline_dir: Path, adapter_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.artwork.CATEGORY_IMAGES", 8)
    monkeypatch.setattr("evaluation.artwork.PAIR_IMAGES", 8)
    examination = ArtworkExamination(judge, WORLD, ["cat"], "judge")
    jobs = list_jobs(examination)
    assert len(jobs) == len(set(jobs)) == 24 + 8 + 24 + 8 + 8
    pipe = load_pipeline(tiny_pipeline_dir)
    load_adapter(pipe, adapter_dir)
    found = evaluate(pipe, examination, num_inference_steps=1, progress=False)
    assert found is not None
    results = found.results
    for side in (results["base"], results["adapter"]):
        assert side["images"]["UA_categories"] == side["images"]["UA_pairs"] == 8
        low, high = side["ci95"]["UA_synonyms"]
        assert low <= side["UA_synonyms"] <= high
        assert sum(side["per_class"]["an animal"].values()) == pytest.approx(100, abs=0.1)
    assert "UA_synonyms" in table(results) and "IRA_untold" in table(results)
