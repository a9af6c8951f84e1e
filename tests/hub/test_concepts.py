"""What an adapter's file for other programs is called."""

from __future__ import annotations

import json
import re

import pytest

from hub.concepts import KOHYA_NAME, file_of, kohya_name, recorded_concepts


@pytest.mark.parametrize(
    ("concepts", "name"),
    [
        (["Van Gogh style"], "no-van-gogh-style.safetensors"),
        (["cat", "Grumpy Cat™"], "no-cat-grumpy-cattm.safetensors"),
        (["Cafe\u0301  Müller"], "no-café-müller.safetensors"),
        (["猫"], "no-猫.safetensors"),
        (["बिल्ली"], "no-बिल्ली.safetensors"),
        (["../../etc/passwd\n"], "no-etc-passwd.safetensors"),
        (["__pytorch_lora_weights"], "no-pytorch-lora-weights.safetensors"),
    ],
)
def test_it_is_called_after_the_concept(concepts: list[str], name: str) -> None:
    assert file_of(concepts) == name


@pytest.mark.parametrize("concepts", [["🐱"], ["cat", "?!"], ["a" * 66], ["\U00020000" * 64], ["x" * 4000]])
def test_what_makes_no_name_is_told_apart_by_a_hash(concepts: list[str]) -> None:
    name = file_of(concepts)
    assert re.fullmatch(r"no-concept-[0-9a-f]{8}\.safetensors", name)
    assert file_of([*concepts, "dog"]) != name == file_of(concepts)


def test_no_name_is_longer_than_80_characters() -> None:
    assert len(file_of(["a" * 65])) == 80


@pytest.mark.parametrize(
    ("said", "concepts"),
    [
        ({}, []),
        ({"concept": None}, []),
        ({"concept": "cat"}, ["cat"]),
        ({"concept": ["cat", "dog"]}, ["cat", "dog"]),
        ({"concept": json.dumps(["cat", "dog"])}, ["cat", "dog"]),
        ({"concept": "[cat] in a box"}, ["[cat] in a box"]),
        ({"concept": "[1, 2]"}, ["[1, 2]"]),
        ({"concept": "[" * 100_000}, ["[" * 100_000]),
    ],
)
def test_a_header_and_results_name_the_same(said: dict, concepts: list[str]) -> None:
    assert recorded_concepts(said) == concepts
    assert kohya_name(said) == (file_of(concepts) if concepts else KOHYA_NAME)
