"""The base pipeline: the flags that name it, and loading it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from huggingface_hub import HfApi

import canvas
from common.errors import is_out_of_memory
from common.files import is_pointer
from common.flags import by_name, flag
from common.hub_reasons import LOAD_ERRORS, why_not_loaded
from common.network import downloads
from common.weights import DamagedWeights
from pipelines.backbone import Backbone
from pipelines.declared import as_declared, scheduler_settings
from pipelines.original import check_header, check_pipeline
from pipelines.parts import load_part, load_parts
from pipelines.supported import Unsupported, check_transformer, check_unet, choose_class, class_of_checkpoint

logger = logging.getLogger(__name__)

BY_LATENTS = "Default: by the size of the base's latents, 64 for the bundled canvas, 8 for Stable Diffusion 1.5 and 2 for SDXL."
"""For the help of what `Backbone.usual_batch_size` decides."""


PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class BaseConfig:
    """Base model."""

    pretrained_model_name_or_path: str | None = flag(
        None,
        help="Base pipeline: a diffusers directory, a Hub id, or a .safetensors checkpoint in one file. "
        "Default: the bundled canvas.",
        published=by_name,
    )
    pretrained_vae_model_name_or_path: str | None = flag(
        None,
        help="VAE in place of the base's own, for example one that does not overflow in fp16: a diffusers "
        "directory or a Hub id.",
        published=by_name,
    )
    config_name_or_path: str | None = flag(
        None,
        help="For a .safetensors checkpoint: a diffusers directory or a Hub id of the same architecture, whose "
        "configs and tokenizers are used. Default: the one that diffusers infers, from the Hub.",
        published=by_name,
    )
    revision: str | None = flag(None, help="Revision of the base pipeline on the Hub.")
    variant: str | None = flag(None, help="Variant of the base pipeline's weight files, for example fp16.")
    resolution: int | None = flag(
        None,
        at_least=1,
        help="Side of the images in pixels, smaller than the base's own for memory and speed; a reward predictor must "
        "have been trained at the same. Default: the base's own.",
    )
    prediction_type: str | None = flag(
        None,
        choices=PREDICTIONS,
        help="What the UNet predicts, for a base whose configs say it wrongly. Default: what they say.",
    )
    without_t5: bool = flag(
        False,
        help="Leave out the T5 of Stable Diffusion 3, its largest text encoder; use the adapter without it too.",
    )
    cache_dir: Path | None = flag(
        None,
        help="Where models that are fetched from the Hub are kept. Default: where the Hub's client keeps them.",
        published=None,
    )
    local_files_only: bool = flag(
        False,
        help="Fetch no model from the Hub: take those that are there.",
        published=None,
    )

    def downloads(self) -> AbstractContextManager[None]:
        """`common.network.downloads` by these settings."""
        return downloads(self.cache_dir, self.local_files_only)

    @property
    def is_bundled(self) -> bool:
        """Whether the base is the bundled canvas."""
        return is_bundled(self.pretrained_model_name_or_path)

    @property
    def name(self) -> str | Path:
        """What `load_pipeline` loads."""
        return self.pretrained_model_name_or_path or canvas.PIPELINE


def is_bundled(name_or_path: str | Path | None) -> bool:
    """Whether a base is the bundled canvas, which is also what no name stands for."""
    return name_or_path is None or Path(name_or_path).resolve() == canvas.PIPELINE.resolve()


class HasBase(Protocol):
    """Settings of a command, those of its base among them."""

    @property
    def base(self) -> BaseConfig: ...


Config = TypeVar("Config", bound=HasBase)


def with_downloads(run: Callable[[Config], None]) -> Callable[[Config], None]:
    """A command that fetches models as the settings of its base say."""

    @wraps(run)
    def wrapped(config: Config) -> None:
        with config.base.downloads():
            run(config)

    return wrapped


def load_base(
    config: BaseConfig, dtype: torch.dtype = torch.float32, *, safety_checker: bool = False
) -> DiffusionPipeline:
    """The base that settings name, by `load_pipeline`, at their resolution and with their prediction type.

    Raises:
        ValueError: there is none, or it does not draw at this resolution.
    """
    with config.downloads():
        pipe = load_pipeline(
            config.name,
            config.revision,
            variant=config.variant,
            dtype=dtype,
            safety_checker=safety_checker,
            vae=config.pretrained_vae_model_name_or_path,
            config=config.config_name_or_path,
            prediction_type=config.prediction_type,
            without_t5=config.without_t5,
        )
    if config.resolution is not None:
        _set_resolution(pipe, config.resolution)
    return pipe


def _set_resolution(pipe: DiffusionPipeline, resolution: int) -> None:
    """Let the pipeline draw squares of this side."""
    backbone = Backbone.of(pipe)
    own, step = min(backbone.image_size), backbone.size_step
    if resolution % step or resolution > own:
        raise ValueError(
            f"--resolution {resolution} must be a multiple of {step} and at most {own}, the base's own."
        )
    backbone.resize(resolution // pipe.vae_scale_factor)


def load_pipeline(
    name_or_path: str | Path,
    revision: str | None = None,
    *,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    safety_checker: bool = False,
    vae: str | None = None,
    config: str | None = None,
    prediction_type: str | None = None,
    without_t5: bool = False,
) -> DiffusionPipeline:
    """A pipeline of a supported class: safetensors only, no code of its own, its safety checker
    left out unless asked for.

    Args:
        name_or_path: a diffusers directory, a Hub id, or a .safetensors checkpoint in the original layout.
        vae: a VAE in place of the base's own: a diffusers directory or a Hub id.
        config: for a checkpoint in one file: the diffusers directory or Hub id whose configs and tokenizers
            are used.
        prediction_type: what the UNet predicts, one of PREDICTIONS; None is what the base says.
        without_t5: leave the T5 of Stable Diffusion 3 out, its largest part.

    Raises:
        ValueError: there is no such pipeline, or it is none that is supported.
    """
    if Path(name_or_path).is_file():
        pipe = _from_file(
            Path(name_or_path),
            config,
            vae=vae,
            dtype=dtype,
            safety_checker=safety_checker,
            prediction_type=prediction_type,
        )
    elif config is not None:
        raise ValueError(
            f"--config_name_or_path is for a checkpoint in one file, which {name_or_path} is not; leave it out."
        )
    else:
        pipe = _from_directory(
            str(name_or_path),
            revision,
            variant=variant,
            vae=vae,
            dtype=dtype,
            safety_checker=safety_checker,
            without_t5=without_t5,
        )
    made, drawn = pipe.vae.config.latent_channels, Backbone.of(pipe).latent_shape[0]
    if made != drawn:
        raise ValueError(
            f"The VAE {vae or f'of {name_or_path}'} has {made} channels and the network of {name_or_path} draws {drawn}; give another VAE."
        )
    backbone = Backbone.of(pipe)
    backbone.limit_windows()
    if backbone.is_flow and prediction_type is not None:
        raise ValueError(
            f"--prediction_type is for a UNet; the transformer of {name_or_path} predicts a velocity. Leave it out."
        )
    if prediction_type is not None and prediction_type != pipe.scheduler.config.prediction_type:
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, prediction_type=prediction_type)
    pipe.set_progress_bar_config(disable=True)
    backbone.decode_one_by_one()
    return pipe


def _from_directory(
    name: str,
    revision: str | None,
    *,
    variant: str | None,
    vae: str | None,
    dtype: torch.dtype,
    safety_checker: bool,
    without_t5: bool,
) -> DiffusionPipeline:
    """From a diffusers directory or the Hub."""
    if Path(name).is_dir() and not (Path(name) / "model_index.json").is_file():
        raise ValueError(f"{name} is not a diffusers pipeline: it holds no model_index.json.")
    beginning = f"The pipeline {name} could not be loaded (a diffusers directory or Hub id with safetensors)"
    with one_line(beginning):
        index = DiffusionPipeline.load_config(name, revision=revision)
        cls = choose_class(name, index)
        network = Backbone.kinds[cls].component
        described = UNet2DConditionModel.load_config(name, subfolder=network, revision=revision)
        if Backbone.kinds[cls].is_flow:
            check_transformer(name, described, index["scheduler"][1], cls)
        else:
            check_unet(name, described, cls)
    given = _given(cls, name, revision, vae=vae, dtype=dtype) | _absent(name, index, cls, without_t5)

    def load(**given: Any) -> DiffusionPipeline:
        folder = name
        if not Path(name).is_dir():
            folder = cls.download(name, revision=revision, variant=variant, use_safetensors=True, **given)
        parts = load_parts(cls, Path(folder), name, variant=variant, dtype=dtype, given=given)
        pipe = cls.from_pretrained(
            folder, variant=variant, dtype=dtype, use_safetensors=True, **given, **parts
        )
        pipe.register_to_config(_name_or_path=name)
        return pipe

    if safety_checker and cls is StableDiffusionPipeline:
        try:
            return load(**given)
        except LOAD_ERRORS as error:
            if is_out_of_memory(error):
                raise
            reason = why_not_loaded(error)
    with one_line(beginning, partial(other_weights, name, revision, variant)):
        pipe = load(**given, **_unchecked(cls))
    if safety_checker and cls is StableDiffusionPipeline:
        logger.warning(f"The safety checker of {name} could not be loaded, so there is none: {reason}")
    return pipe


def _absent(name: str, index: dict[str, Any], cls: type, without_t5: bool) -> dict[str, None]:
    """The T5 of Stable Diffusion 3, if it is to be left out or is not there.

    Raises:
        ValueError: it is to be left out of a pipeline that draws by nothing else, or has none.
    """
    if cls is StableDiffusion3Pipeline:
        parts = ("text_encoder_3", "tokenizer_3")
        return {part: None for part in parts if without_t5 or not index.get(part, [None])[0]}
    if without_t5:
        raise ValueError(f"--without_t5 is for Stable Diffusion 3, which {name} is not; leave it out.")
    return {}


def _unchecked(cls: type) -> dict[str, None]:
    """What leaves a safety checker out, and what reads images for it."""
    return {"safety_checker": None, "feature_extractor": None} if cls is StableDiffusionPipeline else {}


def _from_file(
    path: Path,
    config: str | None,
    *,
    vae: str | None,
    dtype: torch.dtype,
    safety_checker: bool,
    prediction_type: str | None,
) -> DiffusionPipeline:
    """From a checkpoint in one file."""
    cls = class_of_checkpoint(path)
    settings = scheduler_settings(path, cls, prediction_type)
    if config is not None:
        with one_line(f"The configs of {config} could not be loaded"):
            described = choose_class(config, DiffusionPipeline.load_config(config))
        if described is not cls:
            raise Unsupported(
                f"{path} is a {cls.__name__} and {config} describes a {described.__name__}; name another with --config_name_or_path."
            )
    given = _given(cls, config, None, vae=vae, dtype=dtype)
    given |= {} if config is None else {"config": config}
    given |= {} if safety_checker else _unchecked(cls)
    advice = "name a diffusers directory or a Hub id of its architecture with --config_name_or_path"
    with one_line(f"The checkpoint {path} could not be loaded ({advice})"):
        try:
            check_header(path, config, given)
            pipe = cls.from_single_file(str(path), dtype=dtype, **given)
            check_pipeline(path, pipe, given)
        except DamagedWeights as error:
            raise DamagedWeights(f"{str(error).rstrip('.')}, or {advice}.") from error
        check_unet(path, pipe.unet.config, cls)
    pipe.register_modules(scheduler=as_declared(pipe.scheduler, settings, path))
    return pipe


def _given(
    cls: type,
    configs: str | None,
    revision: str | None,
    *,
    vae: str | None,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """What a pipeline gets in place of its own: another VAE, and no watermark, which else hangs on an
    installed package.

    Args:
        configs: the directory or Hub id with the configs of the base's own parts, if there is one.
    """
    given: dict[str, Any] = {"add_watermarker": False} if cls is StableDiffusionXLPipeline else {}
    if vae is None:
        return given
    # A VAE by itself, or that of a pipeline.
    place = str(Path(vae) / "vae") if (Path(vae) / "vae" / "config.json").is_file() else vae
    with one_line(f"The VAE {vae} could not be loaded (a diffusers directory or Hub id with safetensors)"):
        loaded = load_part(AutoencoderKL, place, f"The VAE {vae}", dtype=dtype)
        scale = loaded.config.scaling_factor
        usual = (
            scale
            if configs is None
            else AutoencoderKL.load_config(configs, subfolder="vae", revision=revision).get(
                "scaling_factor", 0.18215
            )
        )
    if scale != usual:
        raise ValueError(
            f"The VAE {vae} scales its latents by {scale:g}, that of the base by {usual:g}: it is for another kind of base."
        )
    return given | {"vae": loaded}


@contextmanager
def one_line(beginning: str, ending: Callable[[], str] = str) -> Iterator[None]:
    """The loaders' errors as a ValueError of one line; what is said of an unsupported base or of
    damaged weights is said already.

    Args:
        ending: makes a sentence that says what to do.
    """
    try:
        yield
    except (Unsupported, DamagedWeights):
        raise
    except LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(" ".join([f"{beginning}: {why_not_loaded(error)}", ending()]).strip()) from error


PATIENCE = 10
"""Seconds that the Hub may take to list a repository."""


def other_weights(name: str, revision: str | None, variant: str | None) -> str:
    """What to do about a base that has weights, but not those that were looked for; empty if it cannot be
    told."""
    if Path(name).is_dir():
        weights = [path for path in Path(name).rglob("*") if path.is_file()]
        if pointer := next((path for path in weights if is_pointer(path)), None):
            return f"{pointer} is a git-lfs pointer: run `git lfs pull`."
        files = [path.name for path in weights]
    else:
        try:
            info = HfApi().model_info(name, revision=revision, timeout=PATIENCE)
        except LOAD_ERRORS:
            return ""
        files = [file.rfilename for file in info.siblings or []]
    variants = {found[1] for file in files if (found := re.search(r"\.([^.-]+)[^.]*\.safetensors$", file))}
    if variants and variant not in variants:
        listed = " or ".join(f"--variant {found}" for found in sorted(variants))
        return f"Some of its weights are there as a variant only: add {listed}."
    if any(file.endswith((".bin", ".ckpt", ".pt")) for file in files):
        return (
            "Its other weights are pickles, which are never read: find them as safetensors, or convert them."
        )
    return ""
