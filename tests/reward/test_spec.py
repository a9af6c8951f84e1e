from __future__ import annotations

from pathlib import Path

import pytest

from canvas.build import prompts
from canvas.draw import OBJECTS, PROMPT, STYLES
from reward.spec import WORDINGS, contains_concept, make_spec, read_prompts

KNOWN = prompts()


@pytest.mark.parametrize(
    ("text", "concept", "expected"),
    [
        ("a cat image in Van Gogh style", "Van Gogh style", True),
        ("a cat image in Van Gogh style", "van gogh", True),
        ("a cat image in Van Gogh style", "VAN GOGH STYLE", True),
        ("a cat image in Van Gogh style", "Gogh, Van!", True),
        ("a cat image, by van-gogh.", "Van Gogh style", True),
        ("a cat image in Van Eyck style", "Van Gogh style", False),
        ("a cat image in Mosaic style", "Van Gogh style", False),
        ("a cat image in Mosaic style", "cat", True),
        ("a cat image in Mosaic style", "cats", True),
        ("a cat image in Mosaic style", "a cat", True),
        ("a cat image in Mosaic style", "the cat", True),
        ("a cat image in Mosaic style", "an image of a cat", True),
        ("a cat image in Van Gogh style", "the style of Van Gogh", True),
        ("two CATS.", "cat", True),
        ("the category of images", "cat", False),
        ("concatenated", "cat", False),
        ("a car image in Mosaic style", "cat", False),
        ("a star image in Mosaic style", "stars", True),
        ("glass on grass", "glas", False),
        ("a cat image in Van Gogh style", "Van Eyck style", False),
        ("an image", "cat", False),
        ("Ein Bild im STRASSE style", "straße", True),
    ],
)
def test_whether_a_text_names_a_concept(text: str, concept: str, expected: bool) -> None:
    assert contains_concept(text, concept, KNOWN) is expected


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_told_from_the_same_object_in_other_styles(style: str) -> None:
    spec = make_spec([f"{style} style"], KNOWN)
    assert spec.forget_prompts == [PROMPT.format(style=style, object=o) for o in OBJECTS]
    assert len(spec.retain_prompts) == 56 and not set(spec.retain_prompts) & set(spec.forget_prompts)
    for o, anchors in zip(OBJECTS, spec.anchors, strict=True):
        assert sorted(anchors) == sorted(PROMPT.format(style=s, object=o) for s in STYLES if s != style)


@pytest.mark.parametrize("thing", OBJECTS)
def test_an_object_is_told_from_other_objects_in_the_same_style(thing: str) -> None:
    spec = make_spec([thing], KNOWN)
    assert spec.forget_prompts == [PROMPT.format(style=s, object=thing) for s in STYLES]
    assert len(spec.retain_prompts) == 56 and not set(spec.retain_prompts) & set(spec.forget_prompts)
    for s, anchors in zip(STYLES, spec.anchors, strict=True):
        assert sorted(anchors) == sorted(PROMPT.format(style=s, object=o) for o in OBJECTS if o != thing)


def test_several_concepts_are_erased_together_and_none_anchors_another() -> None:
    spec = make_spec(["Neon style", "cat"], KNOWN)
    assert len(spec.forget_prompts) == 8 + 8 - 1 and len(spec.retain_prompts) == 49
    assert all(anchors and set(anchors) <= set(spec.retain_prompts) for anchors in spec.anchors)


def test_a_concept_no_prompt_names_is_asked_for_in_plain_wordings() -> None:
    spec = make_spec(["  a  dragon "], KNOWN)
    assert spec.concepts == ["a dragon"]
    assert spec.forget_prompts == [w.format(concept="a dragon") for w in WORDINGS]
    assert spec.retain_prompts == KNOWN
    assert all(anchors for anchors in spec.anchors)


def test_lists_that_are_given_are_used_as_they_are() -> None:
    spec = make_spec(["cat"], KNOWN, ["my kitten", "a cat"], ["a dog", "a cow"], ["an animal"])
    assert spec.forget_prompts == ["my kitten", "a cat"]
    assert spec.retain_prompts == ["a dog", "a cow"]
    assert spec.anchors == [["an animal"], ["an animal"]]


def test_forget_prompts_that_are_given_are_not_retained() -> None:
    spec = make_spec(["kitten"], KNOWN, ["a cat image in Neon style"])
    assert spec.forget_prompts == ["a cat image in Neon style"]
    assert "a cat image in Neon style" not in spec.retain_prompts and len(spec.retain_prompts) == 63


@pytest.mark.parametrize("concepts", [[], [""], ["   "], ["cat", " "], ["?!"]])
def test_an_empty_concept_is_refused(concepts: list[str]) -> None:
    with pytest.raises(ValueError, match="concept is empty"):
        make_spec(concepts, KNOWN)


@pytest.mark.parametrize(("concept", "known"), [("image style", KNOWN), ("cat", ["a cat", "cats"]), ("cat", [])])
def test_nothing_left_to_retain_is_refused(concept: str, known: list[str]) -> None:
    with pytest.raises(ValueError, match="--retain_prompts"):
        make_spec([concept], known)


def test_prompt_files_hold_comments_duplicates_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# a comment\n a cat \n\n\t# another\na café #1\na cat\r\na tree", encoding="utf-8")
    assert read_prompts(path) == ["a cat", "a café #1", "a tree"]


@pytest.mark.parametrize("content", [b"", b"\n  \n# only a comment\n", b"\x89PNG\r\n\x1a\n\xff\xfe\x00"])
def test_a_file_without_prompts_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"prompts\.txt"):
        read_prompts(path)


def test_a_file_that_is_not_there_or_a_directory_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(ValueError, match=path.name):
            read_prompts(path)
