from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.ablation.__main__ import main, parse_config
from benchmarks.ablation.tables import (
    best_learning_rate,
    collapsed,
    explained_variance,
    reached,
    spent,
    table,
)
from benchmarks.ablation.variants import VARIANTS
from training.config import parse_config as parse_run


def run(
    variant: str,
    *ua: float,
    ira: float = 97.0,
    rate: float = 5e-3,
    concept: str = "cat",
    seed: int = 0,
    reward: float = 0.0,
) -> dict[str, Any]:
    curve = [
        {"images": 500 * (i + 1), "iteration": i + 1, "UA": u, "IRA": ira, "CRA": 99.0}
        for i, u in enumerate(ua)
    ]
    base = {"UA": 0.0, "IRA": 98.0, "CRA": 100.0}
    lines = [
        {"iteration": i, "explained_variance/t0900": 0.25, "explained_variance": 0.5, "forget_reward": reward}
        for i in range(len(ua) + 1)
    ]
    return {
        "variant": variant,
        "concept": concept,
        "seed": seed,
        "learning_rate": rate,
        "base": base,
        "curve": curve,
        "training": {},
        "diagnostics": lines,
    }


def test_the_target_counts_only_while_everything_else_is_intact() -> None:
    assert reached(run("a", 10.0, 95.0, 100.0)) == 1000
    assert reached(run("a", 100.0, 100.0, ira=94.9)) is None and not collapsed(run("a", 100.0, ira=94.9))
    assert collapsed(run("a", 100.0, ira=92.9))


def test_a_run_that_never_gets_there_has_needed_its_budget_at_least() -> None:
    assert spent(run("a", 10.0, 20.0)) == 1000.0 and spent(run("a", 96.0, 20.0)) == 500.0


def test_the_best_learning_rate_needs_the_fewest_images() -> None:
    assert (
        best_learning_rate(
            [
                run("a", 0.0, 96.0, rate=1e-3),
                run("a", 96.0, 96.0, rate=2e-3),
                run("a", 96.0, 96.0, rate=4e-3, ira=50.0),
            ]
        )
        == 2e-3
    )


def test_of_learning_rates_that_do_not_get_there_the_reward_tells() -> None:
    far = [
        run("a", 12.0, 0.0, rate=1e-3, reward=0.1),
        run("a", 0.0, 0.0, rate=2e-3, reward=0.6),
        run("a", 0.0, 0.0, rate=4e-3, reward=0.9, ira=50.0),
    ]
    assert best_learning_rate(far) == 2e-3


def test_the_table_averages_over_concepts_and_seeds() -> None:
    text = table([run("default", 96.0, 100.0), run("default", 0.0, 98.0, seed=1), run("ddpo", 0.0, 50.0)])
    rows = text.splitlines()[2:]
    assert rows[0].startswith("| default | 0.005 | 750 [") and "| 2 of 2 | 99.0 [86.3, 100.0] |" in rows[0]
    assert rows[1] == "| ddpo | 0.005 | ≥ 1000 | 0 of 1 | 50.0 | -1.0 | -1.0 | 0 |"
    assert explained_variance([run("default", 1.0)]) == {900: 0.25}


def test_runs_that_are_done_are_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--variants", "default", "replay", "--concepts", "cat", "--sweep_concepts", "star"]
    given += ["--learning_rates", "0.005", "--seeds", "0"]
    for stage, concept, seed in (("sweep", "star", 100), ("runs", "cat", 0)):
        (tmp_path / stage).mkdir()
        for variant in ("default", "replay"):
            found = run(variant, 50.0, 96.0, concept=concept, seed=seed)
            (tmp_path / stage / f"{variant}-{concept}-{seed}-0.005.json").write_text(json.dumps(found))
    main(parse_config([*given, "--output_dir", str(tmp_path)]))
    assert "| replay | 0.005 | 1000 | 1 of 1 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["learning_rates"] == {
        "default": 5e-3,
        "replay": 5e-3,
    }
    assert Image.open(tmp_path / "ablation.png").width > 800


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_flags_that_the_script_knows(variant: str) -> None:
    config = parse_run(["--concept", "cat", *VARIANTS[variant]])
    assert (config != parse_run(["--concept", "cat"])) == (variant != "default")


def test_a_learned_critic_is_asked_where_the_variants_say() -> None:
    asked = [
        name
        for name, flags in VARIANTS.items()
        if parse_run(["--concept", "cat", *flags]).credit.estimator.uses_critic
    ]
    names = list(VARIANTS)
    assert asked == names[names.index("with a critic") : names.index("plain mc") + 1]
