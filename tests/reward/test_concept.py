from __future__ import annotations

from pathlib import Path

import pytest
import torch

import canvas
from benchmarks.worlds.canvas.build import prompts
from benchmarks.worlds.canvas.draw import OBJECTS, PROMPT, STYLES
from reward.concept import (
    ConceptSpec,
    SpecError,
    in_its_place,
    make_spec,
    read_prompts,
    read_spec,
    spec_to_yaml,
)
from reward.concept.automatic import apart_from, choose_retain, kind_of
from reward.concept.vocabulary import (
    KINDS,
    asking_for,
    general_prompts,
    plain_name,
    vocabulary,
    with_article,
    with_other,
    without_concept,
)
from reward.concept.words import contains_concept, shared_words
from reward.teacher import Teacher

KNOWN = prompts()
TEACHER = Teacher.from_pretrained(f"local-dir:{canvas.CLIP}")
encode_text = TEACHER.encode_text


@pytest.mark.parametrize(
    ("text", "concept", "expected"),
    [
        ("a cat image in Van Gogh style", "Van Gogh style", True),
        ("a cat image in Van Gogh style", "van gogh", True),
        ("a cat image in Van Gogh style", "VAN GOGH STYLE", True),
        ("a cat image in Van Gogh style", "Gogh, Van!", True),
        ("a cat image, by van-gogh.", "Van Gogh style", True),
        ("a cat image in Van Gogh style", "paintings by Van Gogh", True),
        ("a painting of a cat", "painting", True),
        ("a cat", "painting", False),
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
    spec = make_spec([f"{style} style"], KNOWN, encode_text)
    assert spec.forget_prompts == [PROMPT.format(style=style, object=o) for o in OBJECTS]
    assert len(spec.retain_prompts) == 56 and not set(spec.retain_prompts) & set(spec.forget_prompts)
    for o, anchors in zip(OBJECTS, spec.anchors, strict=True):
        assert sorted(anchors) == sorted(PROMPT.format(style=s, object=o) for s in STYLES if s != style)


@pytest.mark.parametrize("thing", OBJECTS)
def test_an_object_is_told_from_other_objects_in_the_same_style(thing: str) -> None:
    spec = make_spec([thing], KNOWN, encode_text)
    assert spec.forget_prompts == [PROMPT.format(style=s, object=thing) for s in STYLES]
    assert len(spec.retain_prompts) == 56 and not set(spec.retain_prompts) & set(spec.forget_prompts)
    for s, anchors in zip(STYLES, spec.anchors, strict=True):
        assert sorted(anchors) == sorted(PROMPT.format(style=s, object=o) for o in OBJECTS if o != thing)


@pytest.mark.parametrize(("concept", "of"), [("Neon style", "style"), ("cat", "object")])
def test_all_prompts_put_the_same_in_the_concepts_place(concept: str, of: str) -> None:
    spec = make_spec([concept], KNOWN, encode_text)
    cells = {PROMPT.format(style=s, object=o): {"style": s, "object": o} for s in STYLES for o in OBJECTS}
    for column in zip(*spec.anchors, strict=True):
        assert len({cells[text][of] for text in column}) == 1


def test_the_substitute_is_what_most_prompts_can_take() -> None:
    """The nearest can be had under one prompt only."""
    kept = ["a dog in Mosaic style", "a dog in Neon style", "a kitten in Neon style"]
    known = ["a cat in Mosaic style", "a cat in Neon style", *kept]
    spec = make_spec(["cat"], known, encode_text)
    assert [row[0] for row in spec.anchors] == kept[:2] and spec.anchors[1][1:] == kept[2:]


def test_other_names_stand_in_the_concepts_place() -> None:
    spec = ConceptSpec(
        ["Van Gogh style", "cat"],
        ["a tree in Van Gogh style", "a cat", "an angry kitty"],
        ["a tree"],
        [["a tree"]] * 3,
        ["style", "object"],
    )
    found = in_its_place(spec, 20)
    styles, objects = found[:10], found[10:]
    assert all(text.startswith("a tree in ") and text.endswith(" style") for text in styles)
    assert all(text.split()[0] in ("a", "an", "the") for text in objects)
    assert len(set(found)) == 20 and not any("Gogh" in text or "cat" in text.split() for text in found)
    assert not in_its_place(spec, 0) and not in_its_place(spec, 1)
    assert not in_its_place(ConceptSpec(["cat"], ["a kitty"], ["a tree"], [["a tree"]], ["object"]), 20)


@pytest.mark.parametrize(
    ("prompt", "concept", "name", "expected"),
    [
        ("a cat in a hat", "cat", "owl", "an owl in a hat"),
        ("an Owl", "owl", "cat", "a cat"),
        ("the cat", "a cat", "owl", "the owl"),
        ("concatenation", "cat", "owl", None),
        ("a tree in Van  Gogh style", "Van Gogh style", "Monet", None),
        ("a tree by Van Gogh", "Van Gogh style", "Monet", "a tree by Monet"),
    ],
)
def test_another_name_in_a_prompt(prompt: str, concept: str, name: str, expected: str | None) -> None:
    assert with_other(prompt, concept, name) == expected


def test_several_concepts_are_erased_together_and_none_anchors_another() -> None:
    spec = make_spec(["Neon style", "cat"], KNOWN, encode_text)
    assert len(spec.forget_prompts) == 8 + 8 - 1 and len(spec.retain_prompts) == 49
    assert all(anchors and set(anchors) <= set(spec.retain_prompts) for anchors in spec.anchors)


def test_a_prompt_that_names_two_concepts_may_become_whatever_each_of_them_becomes() -> None:
    spec = make_spec(["Neon style", "cat"], KNOWN, encode_text)
    anchors = dict(zip(spec.forget_prompts, spec.anchors, strict=True))
    both = PROMPT.format(style="Neon", object="cat")
    for style in set(STYLES) - {"Neon"}:
        for thing in set(OBJECTS) - {"cat"}:
            assert PROMPT.format(style=style, object=thing) in anchors[both]
    assert max(len(row) for prompt, row in anchors.items() if prompt != both) == 7


def test_a_concept_no_prompt_names_is_asked_for_as_its_kind_is() -> None:
    spec = make_spec(["  a  dragon "], KNOWN, encode_text, kind="object")
    assert spec.concepts == ["a dragon"] and spec.unnamed == ["a dragon"]
    assert spec.forget_prompts == asking_for("object", "a dragon")
    assert set(KNOWN) <= set(spec.retain_prompts)
    for prompt, anchors in zip(spec.forget_prompts, spec.anchors, strict=True):
        assert anchors and set(anchors) <= set(spec.retain_prompts)
        frame = prompt.replace("a dragon", "").strip()
        assert all(frame in anchor and "dragon" not in anchor for anchor in anchors)


def test_a_concept_that_few_prompts_name_is_asked_for_in_more_wordings() -> None:
    known = [*KNOWN, "a portrait of Mickey Mouse"]
    spec = make_spec(["Mickey Mouse"], known, encode_text)
    assert spec.forget_prompts[0] == "a portrait of Mickey Mouse" and not spec.unnamed
    assert sorted(spec.forget_prompts) == sorted(asking_for("identity", "Mickey Mouse"))
    assert len(spec.anchors) == len(spec.forget_prompts) and all(spec.anchors)


def test_one_prompt_is_enough_where_few_are_known() -> None:
    """A base that knows ten prompts would be asked for ceilings and kelpies it cannot draw."""
    known = [
        f"a photo of a {name}"
        for name in ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    ]
    spec = make_spec(["frog"], known, encode_text)
    assert spec.forget_prompts == ["a photo of a frog"] and set(spec.retain_prompts) < set(known)


def test_general_prompts_are_enough_for_any_concept_and_every_text_is_encoded_once() -> None:
    asked: list[str] = []

    def counting(texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return encode_text(texts)

    few = general_prompts()[::8]  # of all kinds; CLIP takes twenty seconds for all
    spec = make_spec(["Van Gogh style"], few, counting)
    assert len(asked) == len(set(asked))
    assert len(spec.forget_prompts) >= 12 and all("gogh" in p.casefold() for p in spec.forget_prompts)
    assert len(spec.retain_prompts) == 128 and all(1 <= len(row) <= 8 for row in spec.anchors)


def test_lists_that_are_given_are_used_as_they_are() -> None:
    spec = make_spec(
        ["cat"],
        KNOWN,
        encode_text,
        forget_prompts=["my kitten", "a cat"],
        retain_prompts=["a dog", "a cow"],
        anchor_prompts=["an animal"],
    )
    assert spec.forget_prompts == ["my kitten", "a cat"]
    assert spec.retain_prompts == ["a dog", "a cow"]
    assert spec.anchors == [["an animal"], ["an animal"]]


def test_forget_prompts_that_are_given_are_not_retained() -> None:
    spec = make_spec(["kitten"], KNOWN, encode_text, forget_prompts=["a cat image in Neon style"])
    assert spec.forget_prompts == ["a cat image in Neon style"]
    assert "a cat image in Neon style" not in spec.retain_prompts and len(spec.retain_prompts) == 63


@pytest.mark.parametrize("concepts", [[], [""], ["   "], ["cat", " "], ["?!"]])
def test_an_empty_concept_is_refused(concepts: list[str]) -> None:
    with pytest.raises(SpecError, match="--concept"):
        make_spec(concepts, KNOWN, encode_text)


@pytest.mark.parametrize(("concept", "known"), [("image style", KNOWN), ("cat", ["a cat", "cats", "my cat"])])
def test_nothing_left_to_retain_is_refused(concept: str, known: list[str]) -> None:
    with pytest.raises(SpecError, match="--retain_prompts"):
        make_spec([concept], known, encode_text)


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


@pytest.mark.parametrize(
    ("concept", "kind"),
    [
        ("Van Gogh style", "style"),
        ("paintings by Monet", "style"),
        ("Cubism", "style"),
        ("pointillism", "style"),
        ("Katsushika Hokusai", "style"),
        ("cat", "object"),
        ("goldfish", "object"),
        ("Mickey Mouse", "identity"),
        ("albert einstein", "identity"),
        ("nudity", "unsafe"),
        ("NSFW", "unsafe"),
        ("blood and gore", "unsafe"),
    ],
)
def test_the_kind_is_told_from_wording_and_vocabularies(concept: str, kind: str) -> None:
    assert kind_of(concept, encode_text) == kind


def test_a_word_of_no_vocabulary_is_what_its_neighbours_are() -> None:
    """An encoder that puts `zyx` beside the identities and everything else far away."""

    def encode(texts: list[str]) -> torch.Tensor:
        near = set(vocabulary("identity")) | {"zyx"}
        return torch.stack(
            [torch.tensor([1.0, 0.0]) if t in near else torch.tensor([0.0, 1.0]) for t in texts]
        )

    assert kind_of("zyx", encode) == "identity"


@pytest.mark.parametrize(
    ("concept", "name"),
    [
        ("Van Gogh style", "Van Gogh"),
        ("paintings by Van Gogh", "Van Gogh"),
        ("the style of Van Gogh", "Van Gogh"),
        ("The Lord of the Rings", "Lord of the Rings"),
        ("style", "style"),
        ("cat", "cat"),
    ],
)
def test_a_name_is_what_is_left_without_the_words_around_it(concept: str, name: str) -> None:
    assert plain_name(concept) == name


def test_names_take_an_article_unless_they_bring_one() -> None:
    assert [with_article(n) for n in ("cat", "owl", "the sea", "An apple")] == [
        "a cat",
        "an owl",
        "the sea",
        "An apple",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_prompt_of_a_kind_names_the_concept_and_has_anchors_that_do_not(kind: str) -> None:
    asked, anchors = asking_for(kind, "Zyx"), without_concept(kind, ["Abc", "Def"])
    assert len(asked) == len(anchors) == len(set(asked))
    assert all("Zyx" in prompt for prompt in asked)
    assert all(row and not any("Zyx" in text for text in row) for row in anchors)


def test_vocabularies_hold_each_name_once_and_nothing_blank() -> None:
    for kind in (*KINDS, "safe", "scenes"):
        names = vocabulary(kind)
        assert (
            len(names) >= 12
            and len({n.casefold() for n in names}) >= 0.98 * len(names)
            and all(n.strip() == n and n for n in names)
        )
    assert len(general_prompts()) > 1000 and not any("naked" in p for p in general_prompts())


@pytest.mark.parametrize(
    "concept", ["Claude Monet style", "paintings by Picasso", "Mickey Mouse", "dragon", "nudity"]
)
def test_a_concept_is_neither_retained_nor_an_anchor_of_itself_under_another_name(concept: str) -> None:
    spec = make_spec([concept], KNOWN, encode_text)
    name = plain_name(concept).split()[-1]
    assert all(name in prompt for prompt in spec.forget_prompts)
    assert not any(name in text for text in [*spec.retain_prompts, *(a for row in spec.anchors for a in row)])


def test_what_an_unsafe_concept_may_become_is_safe() -> None:
    spec = make_spec(["nudity"], KNOWN, encode_text)
    assert spec.kinds == ["unsafe"]
    assert all(any(name in anchor for name in vocabulary("safe")) for row in spec.anchors for anchor in row)


def test_retain_prompts_are_the_nearest_and_then_the_most_diverse() -> None:
    points = {"f": 0.0, "n1": 0.1, "n2": 0.2, "m1": 1.0, "m2": 1.05, "far": 2.1}

    def encode(texts: list[str]) -> torch.Tensor:
        angle = torch.tensor([points[t] for t in texts])
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    pool = ["m1", "n2", "far", "m2", "n1"]
    assert choose_retain(["f"], [], pool, 5, encode) == pool
    assert choose_retain(["f"], [], pool, 4, encode) == ["n2", "far", "m2", "n1"]
    assert choose_retain(["f"], ["m2"], pool, 3, encode) == ["far", "m2", "n1"]


def test_every_forget_prompt_keeps_an_anchor_however_few_prompts_are_retained() -> None:
    spec = make_spec(["cat"], KNOWN, encode_text, num_retain_prompts=20)
    assert len(spec.retain_prompts) == 20
    assert all(set(row) & set(spec.retain_prompts) for row in spec.anchors)


def test_texts_too_near_to_be_told_apart_are_set_aside_and_named() -> None:
    points = {"cat": 0.0, "kitty": 0.01, "dog": 0.5, "cow": 0.9, "car": 1.4}

    def encode(texts: list[str]) -> torch.Tensor:
        angle = torch.tensor([next(v for k, v in points.items() if k in t) for t in texts])
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    assert apart_from(["cat"], ["kitty", "dog", "cow", "car"], encode) == (["dog", "cow", "car"], ["kitty"])
    spec = make_spec(
        ["cat"], ["a cat", "my cat", "two cats", "a kitty", "a dog", "a cow", "a car"], encode, kind="object"
    )
    assert spec.retain_prompts == ["a dog", "a cow", "a car"] and spec.confusable == {"cat": ["a kitty"]}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"retain_prompts": ["a tree", "a fat cat"]}, '"a fat cat"'),
        ({"anchor_prompts": ["a cat"]}, '"a cat"'),
        ({"retain_prompts": ["my pet"], "forget_prompts": ["my pet"]}, '"my pet"'),
    ],
)
def test_a_prompt_that_is_to_be_forgotten_and_kept_is_refused(
    given: dict[str, list[str]], named: str
) -> None:
    with pytest.raises(SpecError, match=named):
        make_spec(["cat"], KNOWN, encode_text, **given)


def test_the_words_that_most_texts_share_name_them() -> None:
    assert shared_words([PROMPT.format(style="Van Gogh", object=o) for o in OBJECTS], KNOWN) == [
        "van",
        "gogh",
    ]
    assert shared_words([PROMPT.format(style=s, object="cat") for s in STYLES] + ["a dog"], KNOWN) == ["cat"]
    assert shared_words(KNOWN, KNOWN) == [] and shared_words([], KNOWN) == []


# --- files


@pytest.mark.parametrize("concept", ["Neon style", "dragon", "nudity"])
def test_a_spec_survives_its_yaml(concept: str, tmp_path: Path) -> None:
    spec = make_spec([concept], KNOWN, encode_text)
    path = tmp_path / "spec.yaml"
    path.write_text(spec_to_yaml(spec), encoding="utf-8")
    again = read_spec(path)
    assert (again.concepts, again.forget_prompts, again.retain_prompts, again.anchors, again.kinds) == (
        spec.concepts,
        spec.forget_prompts,
        spec.retain_prompts,
        spec.anchors,
        spec.kinds,
    )


def test_a_name_cannot_break_out_of_its_comment(tmp_path: Path) -> None:
    spec = ConceptSpec(
        ["cat"], ["a cat"], ["a dog"], [["a dog"]], ["object"], [], {"cat\nretain: [x]": ["y\nz: 1"]}
    )
    path = tmp_path / "spec.yaml"
    path.write_text(spec_to_yaml(spec), encoding="utf-8")
    assert read_spec(path).retain_prompts == ["a dog"]


def test_a_short_spec_finds_its_anchors_by_words(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "concepts: [cat]\nforget: [a cat on a sofa, {prompt: a cat, anchors: [an animal]}]\nretain: [a dog on a sofa, a tree]\n"
    )
    assert read_spec(path) == ConceptSpec(
        ["cat"],
        ["a cat on a sofa", "a cat"],
        ["a dog on a sofa", "a tree"],
        [["a dog on a sofa"], ["an animal"]],
    )


def test_prompt_files_of_leco_are_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(
        "- target: van gogh\n  positive: van gogh\n  unconditional: ''\n  neutral: a painting\n  action: erase\n  guidance_scale: 1.0\n  resolution: 512\n"
        "- target: starry night\n  positive: van gogh\n  neutral: a night sky\n"
    )
    spec = read_spec(path)
    assert spec == ConceptSpec(
        ["van gogh"],
        ["van gogh", "starry night"],
        ["a painting", "a night sky"],
        [["a painting"], ["a night sky"]],
    )


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("concepts: [cat\nforget: x", r"line 2, column \d+"),
        ("a: 'b", "line 1"),
        ("\x00", "save it as UTF-8"),
        ("\x07", "YAML"),
        ("", "`concepts`"),
        ("just a text", "`concepts`"),
        ("concepts: []", "`concepts`"),
        ("concepts: [cat]\nforget: [a cat]", "`retain`"),
        ("concepts: [cat]\nforget: []\nretain: [a dog]", "`forget`"),
        ("concepts: [cat]\nforget: [3]\nretain: [a dog]", "`forget`"),
        ("concepts: [cat]\nforget: [{prompt: a cat, anchor: x}]\nretain: [a dog]", "`forget`"),
        ("concepts: [cat]\nforget: [a cat]\nretain: [a dog]\nretian: [x]", "retian"),
        ("concepts: [cat]\nforget: [a cat]\nretain: [a black cat]", '"a black cat"'),
        ("concepts: [cat]\nforget: [a cat]\nretain: [a dog]\nkinds: [animal]", "'animal'"),
        ("concepts: [cat]\nforget: [a cat]\nretain: [a dog]\nkinds: [object, style]", "`kinds`"),
        ("concepts: ['?']\nforget: [a cat]\nretain: [a dog]", "--concept"),
        ("- target: x\n  action: enhance", "`erase`"),
        ("- positive: x", "`target`"),
        ("[" * 5000, "YAML"),
        ("!!python/object/apply:os.system ['true']", "YAML"),
    ],
)
def test_a_spec_that_cannot_be_used_is_refused_in_a_sentence(
    content: str, names: str, tmp_path: Path
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=names) as caught:
        read_spec(path)
    assert "spec.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "concept"),
    [
        ("a cafe\u0301 by mu\u0308ller", "Café Müller"),  # the same letters, decomposed
        ("ＶＡＮ ＧＯＧＨ painting", "Van Gogh style"),  # wide letters of East Asian keyboards
        ("STRASSE bei Nacht", "Straße"),
        ("一幅梵高风格的房子", "梵高风格"),
        ("ゴッホ風の猫", "ゴッホ"),
        ("บ้านในสไตล์แวนโก๊ะ", "แวนโก๊ะ"),
        ("고양이가 있는 그림", "고양이"),
        ("วาดรูปcat", "cats"),  # two scripts without a space between them
        ("हिन्दी कविता", "हिन्दी"),
        ("Van Gogh 风格", "Van Gogh"),
    ],
)
def test_a_concept_is_found_in_every_script(text: str, concept: str) -> None:
    assert contains_concept(text, concept, [text, "a dog"])


@pytest.mark.parametrize(
    ("text", "concept"),
    [
        ("一幅莫奈风格的房子", "梵高风格"),
        ("हिंसा", "हिन्दी"),  # begins alike; its vowels are marks
        ("concatenation", "cat"),  # a script with spaces keeps its words whole
        ("고 양 이", "고양이"),
    ],
)
def test_a_concept_is_not_found_where_it_is_not_said(text: str, concept: str) -> None:
    assert not contains_concept(text, concept, [text, concept])


@pytest.mark.parametrize(
    ("forget", "retain"),
    [
        ("a cat image in Neon style", "\ufeffa cat image in Neon style"),  # a byte-order mark before it
        ("a café by Müller", "A cafe\u0301 by  Mu\u0308ller"),
    ],
)
def test_a_prompt_is_not_both_forgotten_and_kept_however_it_is_written(
    forget: str, retain: str, tmp_path: Path
) -> None:
    (tmp_path / "retain.txt").write_text(f"{retain}\n", encoding="utf-8")
    kept = read_prompts(tmp_path / "retain.txt")
    with pytest.raises(SpecError, match="asks for what is to be forgotten"):
        make_spec(["xyz"], [], encode_text, forget_prompts=[forget], retain_prompts=kept)


def test_known_prompts_that_the_user_forgets_in_other_letters_are_not_kept() -> None:
    spec = make_spec(["xyz"], KNOWN, encode_text, forget_prompts=[KNOWN[0].upper()])
    assert KNOWN[0] not in spec.retain_prompts
