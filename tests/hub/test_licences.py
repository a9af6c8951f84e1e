"""A licence that a person has put into a card stays; one that this project has put in goes with the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from hub.card import model_card, save_model_card
from hub.licences import licence_by_hand, licence_of, with_licence

MINE = {"license": "other", "license_name": "mine", "license_link": "https://example.org"}
BUNDLED, SD1, TURBO = "bundled canvas", "CompVis/stable-diffusion-v1-4", "stabilityai/sd-turbo"
BASES = [BUNDLED, SD1, TURBO, "owner/unknown", "/srv/models/local", ""]


def results_on(base: str) -> dict[str, Any]:
    return {"concept": "cat", "base_model_name_or_path": base}


def licence(path: Path) -> dict[str, str]:
    data = ModelCard.load(path).data.to_dict()
    return {name: data[name] for name in MINE if name in data}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("given", [MINE, {"license": "mit"}])
def test_a_licence_of_a_person_stays_whatever_the_base(
    base: str, given: dict[str, str], tmp_path: Path
) -> None:
    path = save_model_card(results_on(base), tmp_path)
    assert licence(path) == licence_of(results_on(base))
    path.write_text(with_licence(path.read_text(), given))
    for other in BASES:
        save_model_card(results_on(other), tmp_path)
        assert licence(path) == given


@pytest.mark.parametrize("base", BASES)
def test_a_licence_of_this_project_goes_with_the_base(base: str, tmp_path: Path) -> None:
    for other in BASES:
        save_model_card(results_on(base), tmp_path)
        assert licence(save_model_card(results_on(other), tmp_path)) == licence_of(results_on(other))


def test_a_licence_on_a_local_base_is_a_persons_even_if_it_is_that_of_the_bundled_one(tmp_path: Path) -> None:
    path = save_model_card(results_on("/srv/models/local"), tmp_path)
    path.write_text(path.read_text().replace("---\n", "---\nlicense: apache-2.0\n", 1))
    save_model_card(results_on("/srv/models/local"), tmp_path)
    assert licence(path) == {"license": "apache-2.0"}


def test_nothing_but_the_licence_is_changed(tmp_path: Path) -> None:
    card = str(model_card(results_on(TURBO) | {"adapter": {"UA": 99.0}}, tmp_path))
    changed = ModelCard(with_licence(card, {"license": "mit"}))
    before, after = ModelCard(card), changed
    assert after.text == before.text
    assert after.data.to_dict() == {
        name: value for name, value in before.data.to_dict().items() if name not in MINE
    } | {"license": "mit"}
    assert with_licence(card, {}) == card


@pytest.mark.parametrize(
    "card",
    ["", "# Card", "---\n- a\n---\n", "---\nlicense: [\n---\n", "---\nlicense: 2026-99-99\n---\n", "---\n"],
)
def test_metadata_that_are_none_hold_no_licence_and_are_left(card: str) -> None:
    assert licence_by_hand(card) == {} and with_licence(card, MINE) == card
