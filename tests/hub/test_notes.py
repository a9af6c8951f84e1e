"""What people wrote is found again, whatever the card around it has become."""

from __future__ import annotations

import pytest

from hub.notes import merge_notes, notes_section, read_notes, with_notes


@pytest.mark.parametrize(
    "notes", ["", "Mine.", "## Mine\n\n- \\1 \\g<0> <!-- a comment -->\n\n```\ncode\n```"]
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_notes_are_read_as_they_were_written(notes: str, line_end: str) -> None:
    card = with_notes(f"# Card\n\n{notes_section('older')}\n\nMore.\n", notes)
    assert card.startswith("# Card\n\n<!-- notes: ") and card.endswith("-->\n\nMore.\n")
    assert read_notes(card.replace("\n", line_end)).replace(line_end, "\n") == notes
    assert with_notes(card, notes) == card


def test_a_card_without_a_place_for_notes_gets_one_at_its_end() -> None:
    assert read_notes("# Card\n") == ""
    assert with_notes("# Card\n", "Mine.") == f"# Card\n\n{notes_section('Mine.')}\n"


def test_comments_within_a_line_are_no_place_for_notes() -> None:
    spoof = f"x {notes_section('spoof')}".replace("\n", " ")
    assert read_notes(f"# Card\n\n{spoof}\n\n{notes_section('Mine.')}\n") == "Mine."


def test_nothing_is_lost_or_doubled_where_two_cards_meet() -> None:
    assert merge_notes("", "") == ""
    assert merge_notes("a", "") == merge_notes("", "a") == merge_notes("a", "a") == "a"
    assert merge_notes("a", "a and more") == merge_notes("a and more", "a") == "a and more"
    assert merge_notes("a", "b") == merge_notes("a\n\nb", "b") == "a\n\nb"
