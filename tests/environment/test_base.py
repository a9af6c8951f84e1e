from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from environment.base import load_pipeline
from environment.errors import friendly_errors, friendly_interrupts


def test_a_directory_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        load_pipeline(tmp_path)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="could not be loaded") as caught:
        load_pipeline(tmp_path / "absent" / "pipeline")
    assert "\n" not in str(caught.value)


def test_a_pipeline_of_another_class_is_refused(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline_dir, directory)
    index = json.loads((directory / "model_index.json").read_text())
    index["_class_name"] = "DDPMPipeline"
    kept = ("_class_name", "_diffusers_version", "unet", "scheduler")
    (directory / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k in kept}))
    with pytest.raises(ValueError, match="DDPMPipeline"):
        load_pipeline(directory)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_damaged_weights_are_refused(part: str, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline_dir, directory)
    path = next((directory / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="could not be loaded") as caught:
        load_pipeline(directory)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "pipeline"
    shutil.copytree(tiny_pipeline_dir, directory)
    path = next((directory / "unet").glob("*.safetensors"))
    path.rename(path.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(ValueError, match="could not be loaded"):
        load_pipeline(directory)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ValueError("the concept is empty"), 2, "error: the concept is empty"),
        (OSError(28, "No space left on device", "/full/file"), 1, "error: No space left on device: /full/file"),
        (KeyboardInterrupt(), 130, "error: interrupted."),
    ],
)
def test_errors_of_users_and_disks_are_one_sentence(error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, friendly_errors():
        raise error
    assert caught.value.code == code
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(TypeError), friendly_errors():
        raise TypeError("a bug")


def test_an_interrupted_run_says_where_it_can_go_on_and_its_bugs_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, friendly_interrupts("go on with --resume_from_checkpoint latest"):
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert capsys.readouterr().err == "error: interrupted. go on with --resume_from_checkpoint latest\n"
    with pytest.raises(ValueError), friendly_interrupts():
        raise ValueError("a bug")
