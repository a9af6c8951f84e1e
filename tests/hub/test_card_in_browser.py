"""What a browser makes of a card whose texts want to be markup."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import PROGRAM, Chromium

from hub.card import model_card

HOSTILE = "<script>document.title = 'run'</script> <img src=x onerror=\"document.title = 'run'\"> </td><svg onload=\"document.title = 'run'\">"


@pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium here (on Debian: apt-get install chromium)")
def test_a_prompt_with_script_tags_stays_text(tmp_path: Path) -> None:
    """The card as a site would show it that lets all HTML through."""
    markdown_it = pytest.importorskip("markdown_it")
    prompts = {
        "concept": [HOSTILE],
        "forget_prompts": [HOSTILE],
        "retain_prompts": [HOSTILE],
        "judge": HOSTILE,
        "seeds": [HOSTILE],
    }
    card = str(
        model_card(
            {**prompts, "base_model_name_or_path": HOSTILE, "base": {"UA": 1.0}, "adapter": {"UA": 9.0}},
            tmp_path,
        )
    )
    shown = (
        markdown_it.MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(card.split("\n---\n", 1)[1])
    )
    (tmp_path / "page.html").write_text(
        f"<!doctype html><meta charset=utf-8><title>still</title>{shown}", encoding="utf-8"
    )
    (tmp_path / "control.html").write_text(f"<!doctype html><title>still</title>{HOSTILE}", encoding="utf-8")
    (tmp_path / "profile").mkdir()
    with Chromium(tmp_path / "profile") as browser:
        browser.open((tmp_path / "control.html").as_uri())
        browser.wait_for("document.title == 'run'")  # the texts do what they say where nobody escapes them
        browser.open((tmp_path / "page.html").as_uri())
        browser.wait_for("document.readyState == 'complete' && document.querySelectorAll('h2').length > 1")
        assert browser.evaluate("document.title") == "still"
        assert browser.evaluate("document.querySelectorAll('script, img, svg').length") == 0
        assert "<script>document.title = 'run'</script>" in browser.evaluate("document.body.innerText")
