"""The stages of the build: `python -m benchmarks.worlds.artwork build` runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save
from transformers import CLIPTextModel

from benchmarks.jobs import slug
from benchmarks.worlds.artwork import GUIDANCE
from benchmarks.worlds.artwork.judge import augment
from benchmarks.worlds.artwork.pack import Artwork, load
from benchmarks.worlds.artwork.packages import ArtworkError
from benchmarks.worlds.artwork.scenes import PROMPT, SIZE, Scene, caption, compose, draw, with_article
from benchmarks.worlds.canvas import models
from benchmarks.worlds.canvas.fit import muon
from benchmarks.worlds.drawing import draw_in_parallel, shares
from common.files import write_bytes, write_json, write_text
from evaluation.artwork import Object, World
from evaluation.judge import Judge
from pipelines.base import load_pipeline
from pipelines.identity import content_digest

PIPELINE_SEED, TEACHER_SEED, JUDGE_SEED = 21, 22, 23
JUDGE_WIDTHS = (20, 40, 80, 112)
JUDGE_PAIRS = 0.4
"""Share of the judge's pictures that show two objects: with that of captions it misses one of two."""
TEACHER_TOWER = {"layers": [1, 1, 1, 1], "width": 10}
CHUNK = 500
"""Pictures that a process draws before it reports."""


@dataclass(frozen=True)
class Size:
    """How large the pipeline is and how long everything is trained.

    Attributes:
        pictures: that the pipeline is trained on; half as many for the teacher, twice for the judge.
        steps: of each stage that is trained.
        latent_channels: of its latents, which are an eighth of the pictures' side.
        autoencoder_channels, unet_channels: of each resolution.
        unet_layers: residual blocks at each.
        text_width: of the text encoder.
        reward_flags: further ones of `python -m reward.train`.
    """

    pictures: int
    steps: Mapping[str, int]
    latent_channels: int
    autoencoder_channels: tuple[int, ...]
    unet_channels: tuple[int, int]
    unet_layers: int
    text_width: int
    reward_flags: tuple[str, ...] = ()


SIZES = {
    "cpu": Size(
        pictures=30_000,
        steps={
            "autoencoder": 2100,
            "decoder": 3000,
            "denoiser": 12_000,
            "judge": 2500,
            "clip": 1500,
            "reward": 4000,
        },
        latent_channels=12,
        autoencoder_channels=(16, 32, 64, 96),
        unet_channels=(64, 96),
        unet_layers=1,
        text_width=64,
        reward_flags=("--width", "32"),
    ),
    "gpu": Size(
        pictures=100_000,
        steps={
            "autoencoder": 20_000,
            "decoder": 10_000,
            "denoiser": 60_000,
            "judge": 10_000,
            "clip": 10_000,
            "reward": 6000,
        },
        latent_channels=12,
        autoencoder_channels=(32, 64, 128, 192),
        unet_channels=(128, 256),
        unet_layers=2,
        text_width=128,
    ),
}
"""For two cores and for a large card."""


@dataclass(frozen=True)
class Build:
    """What every stage is given.

    Attributes:
        pack: the file of sprites and names.
        output_dir: where weights are written, and unfinished work in `work`.
        scale: multiplies the number of training steps.
        begun: a pipeline whose autoencoder is kept and whose UNet and text encoder are trained further.
    """

    pack: Path
    output_dir: Path
    size: Size
    scale: float
    device: str
    begun: Path | None = None

    @property
    def work(self) -> Path:
        return self.output_dir / "work"

    def begin(self) -> None:
        """Make the directories, and note what is built there.

        Raises:
            ArtworkError: something else has been begun there. Pictures, captions and weights of two builds
                would mix without a sign of it.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        file = self.work / "build.json"
        now = {"pack": content_digest(self.pack), "size": repr(self.size), "scale": self.scale}
        if self.begun:
            now["begun"] = content_digest(self.begun / "unet" / SAFETENSORS_WEIGHTS_NAME)
        if file.exists() and (then := json.loads(file.read_text("utf-8"))) != now:
            changed = [name for name in now.keys() | then.keys() if then.get(name) != now.get(name)]
            raise ArtworkError(
                f"{self.output_dir} holds what was begun with another {' and '.join(sorted(changed))}; "
                "take another --output_dir."
            )
        write_json(file, now)

    def steps(self, stage: str) -> int:
        """Training steps of a stage."""
        return max(1, round(self.size.steps[stage] * self.scale))


def scenes(artwork: Artwork, count: int, seed: int, pairs: float | None = None) -> list[Scene]:
    """What the pictures of `pictures` show, in the same order."""
    return [_compose(artwork, np.random.default_rng([seed, i]), pairs) for i in range(count)]


def pictures(pack: Path, count: int, seed: int, pairs: float | None = None) -> torch.Tensor:
    """`count` pictures (count, 3, 64, 64) uint8, each a function of the seed and its index.

    Args:
        pairs: the share of them that show two objects, the others being of one; None is that of captions.
    """
    jobs = [(pack, seed, pairs, *share) for share in shares(count, CHUNK)]
    return draw_in_parallel(_draw_many, jobs, f"pictures (seed {seed})")


def _draw_many(job: tuple[Path, int, float | None, int, int]) -> np.ndarray:
    pack, seed, pairs, start, count = job
    artwork, drawn = load(pack), []
    for i in range(start, start + count):
        rng = np.random.default_rng([seed, i])
        drawn.append(draw(artwork, _compose(artwork, rng, pairs), rng))
    return np.stack(drawn)


def _compose(artwork: Artwork, rng: np.random.Generator, pairs: float | None) -> Scene:
    kind = None if pairs is None else "pair" if rng.random() < pairs else "name"
    return compose(artwork, rng, kind)


def captions_of(shown: list[Scene]) -> models.Captions:
    """Each picture's own caption."""
    return lambda index, generator: [shown[i].caption for i in index.tolist()]


def labels(artwork: Artwork, shown: list[Scene]) -> dict[str, torch.Tensor]:
    """What a judge is to see: "style" (N,) class indices, "object" (N, objects) float, 1 for those shown."""
    objects = torch.zeros(len(shown), len(artwork.names))
    for row, scene in enumerate(shown):
        for name in scene.objects:
            objects[row, artwork.names.index(name)] = 1
    return {
        "style": torch.tensor([artwork.styles.index(scene.style) for scene in shown]),
        "object": objects,
    }


def outline_distance(reconstruction: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`models.coarse_distance`, the absolute error at a quarter of the resolution, and that of differences
    between neighbouring pixels: colours of areas and places of outlines, which decide what a drawing is."""
    coarse = F.l1_loss(F.avg_pool2d(reconstruction, 4), F.avg_pool2d(x, 4))
    outlines = F.l1_loss(reconstruction.diff(dim=-1), x.diff(dim=-1))
    outlines = outlines + F.l1_loss(reconstruction.diff(dim=-2), x.diff(dim=-2))
    return models.coarse_distance(reconstruction, x) + coarse + outlines


def build_autoencoder(build: Build) -> None:
    """Train the autoencoder, or take that of what was begun; keep it in work/autoencoder, and the latents of
    all pictures in work/latents."""
    images = pictures(build.pack, build.size.pictures, PIPELINE_SEED)
    images = images.contiguous(memory_format=torch.channels_last)  # the faster layout for its convolutions
    if build.begun:
        vae = AutoencoderKL.from_pretrained(build.begun / "vae").to(build.device)
    else:
        vae = _trained_autoencoder(build, images)
    vae.save_pretrained(build.work / "autoencoder")
    mean, std = models.encode(vae, images)
    latents = {"mean": mean.contiguous(), "std": std.contiguous()}
    write_bytes(build.work / "latents.safetensors", save(latents))


def _trained_autoencoder(build: Build, images: torch.Tensor) -> AutoencoderKL:
    return models.train_autoencoder(
        images,
        steps=build.steps("autoencoder"),
        state_dir=build.work,
        seed=PIPELINE_SEED,
        channels=build.size.autoencoder_channels,
        latent_channels=build.size.latent_channels,
        batch_size=16,
        distance=outline_distance,
        recipe=muon(5e-3),
        device=build.device,
    )


def build_decoder(build: Build) -> None:
    """Train the decoder of work/autoencoder further: what is seen of a drawing is up to it, and it costs half
    of what training both does."""
    vae = AutoencoderKL.from_pretrained(build.work / "autoencoder").to(build.device)
    images = pictures(build.pack, build.size.pictures, PIPELINE_SEED)
    models.train_decoder(
        vae,
        images.contiguous(memory_format=torch.channels_last),
        saved_latents(build),
        steps=build.steps("decoder"),
        state_dir=build.work,
        seed=PIPELINE_SEED,
        distance=outline_distance,
        recipe=muon(2e-3),
    )
    vae.save_pretrained(build.work / "autoencoder")


def saved_latents(build: Build) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of all pictures.

    Raises:
        ArtworkError: there are none.
    """
    file = build.work / "latents.safetensors"
    if not file.exists():
        raise ArtworkError(f"{build.work} holds no latents: run the stage autoencoder first.")
    latents = load_file(file, build.device)
    return latents["mean"], latents["std"]


def build_denoiser(build: Build, without: str | None = None) -> None:
    """Train UNet and text encoder on the latents of `build_autoencoder` and write the pipeline.

    Args:
        without: an object or a style that this pipeline is never shown, nor told of; it is written beside the
            other.

    Raises:
        ArtworkError: there are no latents, or nothing is called that.
    """
    artwork, latents, name = load(build.pack), saved_latents(build), pipeline_name(without)
    shown = scenes(artwork, len(latents[0]), PIPELINE_SEED)
    if without not in (None, *artwork.names, *artwork.styles):
        raise ArtworkError(
            f"There is no {without!r}; objects are {', '.join(artwork.names)}, styles {', '.join(artwork.styles)}."
        )
    left = [i for i, scene in enumerate(shown) if without not in (scene.style, *scene.objects)]
    tokenizer = models.build_tokenizer()
    unet, text_encoder = models.train_denoiser(
        (latents[0][left], latents[1][left]),
        captions_of([shown[i] for i in left]),
        tokenizer,
        steps=build.steps("denoiser"),
        state_dir=build.work / name if without else build.work,
        seed=PIPELINE_SEED,
        channels=build.size.unet_channels,
        layers_per_block=build.size.unet_layers,
        text_width=build.size.text_width,
        recipe=muon(3e-3),
        snr_gamma=5,
        begun=_begun_networks(build),
        device=build.device,
    )
    vae = AutoencoderKL.from_pretrained(build.work / "autoencoder")
    models.save_pipeline(build.output_dir / name, vae, unet, text_encoder, tokenizer)


def _begun_networks(build: Build) -> tuple[UNet2DConditionModel, CLIPTextModel] | None:
    if not build.begun:
        return None
    pipe = load_pipeline(build.begun)
    return pipe.unet, pipe.text_encoder


def pipeline_name(without: str | None = None) -> str:
    """The directory of a pipeline that is never shown an object or a style, or of the whole one."""
    return f"pipeline-without-{slug(without)}" if without else "pipeline"


def build_judge(build: Build) -> None:
    """Train the judge on pictures of its own: twice as many as the pipeline's, for no two objects stand side
    by side often."""
    artwork, count = load(build.pack), 2 * build.size.pictures
    torch.manual_seed(JUDGE_SEED)
    domains = {"style": list(artwork.styles), "object": list(artwork.names)}
    judge = Judge(domains, PROMPT, SIZE, JUDGE_WIDTHS, several=["object"])
    models.train_judge(
        pictures(build.pack, count, JUDGE_SEED, JUDGE_PAIRS),
        labels(artwork, scenes(artwork, count, JUDGE_SEED, JUDGE_PAIRS)),
        judge,
        steps=build.steps("judge"),
        state_dir=build.work,
        seed=JUDGE_SEED,
        augment=augment,
        recipe=muon(4e-3, weight_decay=0.05),
        device=build.device,
    )
    judge.save_pretrained(build.output_dir / "judge", dtype=torch.float16)
    world(artwork).save(build.output_dir / "judge")


def world(artwork: Artwork) -> World:
    """What `--protocol artwork` draws beside the names."""

    def said(words: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(with_article, words))

    objects = {
        obj.name: Object(with_article(obj.name), said(obj.synonyms), said(obj.categories), obj.subgroup)
        for obj in artwork.objects
    }
    return World(caption("{said}", "{style}"), objects, GUIDANCE)


def build_teacher(build: Build) -> None:
    """Train the open_clip teacher on pictures of its own."""
    artwork, count = load(build.pack), build.size.pictures // 2
    models.train_clip(
        pictures(build.pack, count, TEACHER_SEED),
        captions_of(scenes(artwork, count, TEACHER_SEED)),
        models.build_tokenizer(),
        build.output_dir / "clip",
        steps=build.steps("clip"),
        state_dir=build.work,
        seed=TEACHER_SEED,
        tower=TEACHER_TOWER,
        recipe=muon(3e-3, weight_decay=0.05),
        device=build.device,
    )


def build_reward(build: Build) -> None:
    """Distil the reward predictor from teacher and pipeline, as a user would."""
    artwork = load(build.pack)
    prompts = [PROMPT.format(object=name, style=style) for style in artwork.styles for name in artwork.names]
    file = build.work / "prompts.txt"
    write_text(file, "\n".join(prompts) + "\n")
    given = {
        "pretrained_model_name_or_path": build.output_dir / "pipeline",
        "clip_model": f"local-dir:{build.output_dir / 'clip'}",
        "prompts": file,
        "output_dir": build.output_dir / "reward",
        "max_train_steps": build.steps("reward"),
        "guidance_scale": GUIDANCE,
    }
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "reward.train", *words, "--overwrite_output_dir"]
    subprocess.run([*command, *build.size.reward_flags], check=True)
