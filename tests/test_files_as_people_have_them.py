"""Files that look right and would be read otherwise: each is refused, or read as a person means it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import canvas
from common.files import POINTER, make_directory
from common.pictures import pictures_in, read_picture
from common.texts import load_yaml
from evaluation.judge import Judge
from evaluation.prompt_file import read_prompt_file
from hub.files import UnreadableAdapter, read_file, require_empty
from pipelines.supported import Unsupported, class_of_checkpoint
from reward.concept import SpecError, read_prompts, read_spec
from reward.concept.spec import clean_concepts
from reward.concept.words import words
from reward.predictor import RewardPredictor
from training.config import parse_config

# --- texts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "prompt\na fox, in snow\n", r"l\.csv, row 2: there are more cells than columns"),
        ("l.csv", 'prompt,seed\na fox,1\n"a\nhen",2\na, b,3\n', r"row 4: there are more cells"),
        ("l.csv", "prompt,group,label,prompt\na fox,forget,fox,a hen\n", "two columns 'prompt'"),
        ("l.csv", "prompt,group,label\n\u200b,forget,fox\n", "row 2: column 'prompt' is missing or empty"),
        ("l.jsonl", '{"prompt": "a fox", "prompt": "a hen"}\n', "the key 'prompt' stands there twice"),
    ],
)
def test_a_prompt_file_that_would_be_read_otherwise_is_refused(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompt_file(tmp_path / name)


def test_keys_with_spaces_and_labels_that_are_numbers_are_read(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text('{"prompt ": "a fox", "group": "forget", "label": 0}\n')
    (row,) = read_prompt_file(tmp_path / "l.jsonl")
    assert (row.prompt, row.label) == ("a fox", "0")


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "b:\n  a: 1\n  a: 2\n", "- {a: 1, a: 1}\n"])
def test_a_key_that_stands_twice_in_yaml_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="the key 'a' stands there twice"):
        load_yaml(text)
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(SpecError, match=r"line .*the key 'a' stands there twice"):
        read_spec(tmp_path / "spec.yaml")


def test_what_joining_and_copying_leaves_in_a_list_is_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a cat\n\ufeff# a note\n\u200b\n\ufeffa fox\n")
    assert read_prompts(tmp_path / "list.txt") == ["a cat", "a fox"]


@pytest.mark.parametrize("text", ["caf\udce9 style", "a \ud83d cat"])
def test_half_a_character_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="half a character"):
        clean_concepts([text])


@pytest.mark.parametrize(
    ("one", "many"),
    [("fox", "foxes"), ("brush", "brushes"), ("witch", "witches"), ("house", "houses")],
)
def test_a_plural_is_the_same_word(one: str, many: str) -> None:
    assert words(one) == words(many)


def test_a_plural_of_what_is_erased_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(
        "concepts: [fox]\nforget: [a fox]\nretain: [two foxes in snow, a tree]\n"
    )
    with pytest.raises(SpecError, match="foxes"):
        read_spec(tmp_path / "spec.yaml")


def test_a_percentage_is_no_fraction(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--concept", "cat", "--target_unlearning_accuracy", "95"])
    assert "--target_unlearning_accuracy" in capsys.readouterr().err


# --- pictures ---------------------------------------------------------------------------------------------


def pixel(path: Path) -> tuple[int, ...]:
    found = read_picture(path).getpixel((0, 0))
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize(("most", "seen"), [(1.01, 204), (255.4, 200), (65600.0, 200)])
def test_floats_that_overshoot_their_range_are_cut_off(most: float, seen: int, tmp_path: Path) -> None:
    scale = 1.0 if most < 2 else 255.0 if most < 300 else 65535.0
    values = np.full((8, 8), seen / 255 * scale, np.float32)
    values[4, 4] = most
    values[5, 5] = -0.01 * scale
    Image.fromarray(values).save(tmp_path / "f.tif")
    assert pixel(tmp_path / "f.tif") == (seen,) * 3


def test_a_transparent_value_of_16_bits_is_white(tmp_path: Path) -> None:
    values = np.full((8, 8), 30000, np.uint16)
    values[0, 0] = 7
    Image.fromarray(values).save(tmp_path / "g.png", transparency=7)
    picture = read_picture(tmp_path / "g.png")
    assert picture.getpixel((0, 0)) == (255,) * 3 and picture.getpixel((1, 1)) == (117,) * 3


def test_a_grey_profile_counts_with_transparency_too(tmp_path: Path) -> None:
    grey = Image.new("L", (8, 8), 50)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    for name, image in (("l.png", grey), ("la.png", grey.convert("LA"))):
        image.save(tmp_path / name, icc_profile=lab.tobytes())
    assert pixel(tmp_path / "l.png") == pixel(tmp_path / "la.png")


def test_pictures_are_found_in_subfolders_and_under_every_usual_name(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.jfif", "sub/c.JPE", ".hidden.png", "._d.png"):
        with (tmp_path / name).open("wb") as file:
            picture.save(file, format="png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "absent.png")
    assert [path.name for path in pictures_in(tmp_path)] == ["a.png", "b.jfif", "gone.png", "c.JPE"]
    with pytest.raises(ValueError, match=r"gone\.png cannot be read"):
        read_picture(tmp_path / "gone.png")


# --- weights and places -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.safetensors", POINTER + b"v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        ("a.bin", b"\x80\x04.", "pickles can run any code"),
    ],
)
def test_what_is_no_adapter_says_what_it_is(name: str, content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableAdapter, match=why):
        read_file(tmp_path / name)


def test_a_pointer_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_bytes(POINTER + b"v1\n")
    with pytest.raises(Unsupported, match="git lfs pull"):
        class_of_checkpoint(tmp_path / "base.safetensors")


def test_links_that_lead_nowhere_are_followed_and_loops_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    assert make_directory(tmp_path / "link") == tmp_path / "absent" and (tmp_path / "absent").is_dir()
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    for use in (make_directory, require_empty):
        with pytest.raises(ValueError, match="leads to itself"):
            use(tmp_path / "one")


def test_a_pointer_is_no_checkpoint_of_a_network(tmp_path: Path) -> None:
    shutil.copytree(canvas.REWARD, tmp_path / "reward")
    shutil.copytree(canvas.JUDGE, tmp_path / "judge")
    for loader, name in ((RewardPredictor, "reward"), (Judge, "judge")):
        (tmp_path / name / "model.safetensors").write_bytes(POINTER + b"v1\n")
        with pytest.raises(ValueError, match="git lfs pull"):
            loader.from_pretrained(tmp_path / name)
