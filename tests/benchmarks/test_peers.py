from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.__main__ import MATCHED, OURS, PEER, main, parse_config, seconds_to_target, table
from benchmarks.peers.settings import MATCHED as MATCHED_FLAGS
from training.config import parse_config as parse_run


def run(name: str, *ua: float, rate: float = 5e-3, speed: float = 2.0) -> dict[str, Any]:
    curve = [
        {"images": 100 * (i + 1), "seconds": 100 * (i + 1) / speed, "UA": u, "IRA": 98.0, "CRA": 99.0}
        for i, u in enumerate(ua)
    ]
    images = 100 * len(ua)
    parts = {"rollout": images / 10, "update": images / 4}
    base = {"UA": 0.0, "IRA": 98.0, "CRA": 100.0}
    return {
        "name": name,
        "learning_rate": rate,
        "base": base,
        "curve": curve,
        "images": images,
        "seconds": images / speed,
        "parts": parts,
    }


def test_the_time_to_the_target_is_that_of_the_judgement_that_saw_it() -> None:
    assert seconds_to_target(run(OURS, 20.0, 96.0, 100.0)) == 100.0
    assert seconds_to_target(run(PEER, 20.0, 30.0)) is None


def test_a_row_is_a_trainer_at_a_learning_rate() -> None:
    rows = table(
        [run(PEER, 0.0, 50.0, rate=1e-2), run(OURS, 96.0, 100.0, speed=4.0), run(OURS, 0.0, 96.0, speed=4.0)]
    ).splitlines()[2:]
    assert rows[0] == "| TRL DDPO | 0.01 | 2.00 | 10.00 | 4.00 | 0 of 1 | - | - | 50.0 | 98.0 | 99.0 |"
    assert rows[1] == "| ours | 0.005 | 4.00 | 10.00 | 4.00 | 2 of 2 | 150 | 38 | 98.0 | 98.0 | 99.0 |"


def test_the_peers_algorithm_is_flags_that_the_script_knows() -> None:
    config = parse_run(["--concept", "cat", *MATCHED_FLAGS])
    update = config.update
    assert config.credit.advantage == "ddpo" and update.kl_coef == update.anchor_kl_coef == 0
    assert update.masked_steps == 0 and update.gradient_accumulation_steps == 16


def test_runs_that_are_done_are_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / ".installed").touch()
    (tmp_path / "runs").mkdir()
    for name, rate in ((PEER, 3e-3), (MATCHED, 3e-3), (OURS, 5e-3)):
        file = {PEER: "trl-ddpo", MATCHED: "ours-the-peer-s-algorithm", OURS: "ours"}[name]
        (tmp_path / "runs" / f"{file}-cat-0-{rate:g}.json").write_text(json.dumps(run(name, 50.0, 96.0)))
    rates = ["--peer_learning_rates", "0.003", "--learning_rate", "0.005"]
    main(parse_config(["--concepts", "cat", "--seeds", "0", *rates, "--output_dir", str(tmp_path)]))
    assert capsys.readouterr().out.count("| 1 of 1 |") == 3
    assert len(json.loads((tmp_path / "peers.json").read_text())) == 3
