"""What a predictor learns from: clean latents and what the teacher says of their images, made once and kept
on disk.

A source makes latents shard by shard: the base's own samples or rollouts for a list of prompts, or images
    encoded by the base's VAE. Whatever the
source, the teacher sees the *decoded* latent, which is what it sees of a rollout's finished image.

A cache is a directory `<kind>-<key>` with `source.json` and one safetensors file for each shard. The key is a
digest of everything that made it (weights, prompts, steps, guidance, seed, teacher, ...), so that another
base or another setting finds another directory. A shard is written aside and renamed, and carries a digest of
its tensors: after a kill the missing ones are made, and a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize
from tqdm.auto import tqdm

from common.errors import Unsound
from common.files import make_directory, write_bytes, write_text
from common.pictures import as_shown, no_pictures, pictures_in, read_picture
from pipelines.backbone import Backbone
from policy.kernel import ReverseKernel
from policy.policy import Policy
from reward.origin import fingerprint, key_of
from reward.teacher import Teacher

SOURCE_NAME = "source.json"


@dataclass(frozen=True)
class Latents:
    """N clean latents and their images' embeddings on the CPU.

    Attributes:
        latents: (N, C, h, w) float32, scaled as the UNet sees them.
        embeddings: (N, D) float32, unit length.
        states: (N, S, C, h, w) float16, noisy states of the rollouts that ended in them, or none: (N, 0, C,
            h, w).
        timesteps: (S,) int64, the states' timesteps.
    """

    latents: torch.Tensor
    embeddings: torch.Tensor
    states: torch.Tensor
    timesteps: torch.Tensor

    @classmethod
    def without_states(cls, latents: torch.Tensor, embeddings: torch.Tensor) -> Latents:
        count, *shape = latents.shape
        return cls(
            latents,
            embeddings,
            torch.zeros(count, 0, *shape, dtype=torch.float16),
            torch.zeros(0, dtype=torch.int64),
        )

    @classmethod
    def cat(cls, parts: list[Latents]) -> Latents:
        """Join parts that share their timesteps."""
        joined = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("latents", "embeddings", "states")
        }
        return cls(**joined, timesteps=parts[0].timesteps)

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: slice | torch.Tensor) -> Latents:
        return Latents(self.latents[index], self.embeddings[index], self.states[index], self.timesteps)

    def held_out(self) -> tuple[Latents, Latents]:
        """What to learn from, and the first tenth, which is not learnt from."""
        count = max(1, len(self) // 10)
        return self[count:], self[:count]


class Source(Protocol):
    """Makes latents shard by shard, each the same whenever it is made.

    Attributes:
        backbone: decodes what it makes.
        shard_size: latents in a shard.
        available: how many there can be, None for no end.
    """

    backbone: Backbone
    shard_size: int

    @property
    def available(self) -> int | None: ...

    def description(self) -> dict[str, Any]:
        """Everything that decides what the latents are, JSON; `kind` says what it is."""

    def public(self) -> dict[str, Any]:
        """What a predictor's config says of it."""

    def shard(self, index: int) -> Drawn:
        """`shard_size` latents, fewer at the end of what is available."""


@dataclass(frozen=True)
class Drawn:
    """What a source makes.

    Attributes:
        latents: (n, C, h, w) float32.
        states: (n, S, C, h, w), None for no states.
        timesteps: (S,), None for no states.
    """

    latents: torch.Tensor
    states: torch.Tensor | None = None
    timesteps: torch.Tensor | None = None


class BaseSamples:
    """What the base draws for the prompts in turn, every second shard by stochastic sampling.

    Raises:
        ValueError: a prompt does not fit into the tokenizer's window.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        prompts: list[str],
        num_inference_steps: int = 16,
        guidance_scale: float = 7.5,
        *,
        shard_size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.pipe, self.prompts, self.backbone = pipe, prompts, Backbone.of(pipe)
        for prompt in prompts:
            self.backbone.check_window(prompt)
        self.num_inference_steps, self.guidance_scale, self.seed = num_inference_steps, guidance_scale, seed
        self.shard_size = shard_size or self.backbone.usual_batch_size
        self.available = None

    def description(self) -> dict[str, Any]:
        return self.public() | {
            "weights": fingerprint(*self.backbone.modules),
            "scheduler": {
                name: value
                for name, value in self.backbone.deterministic_sampler().config.items()
                if not name.startswith("_")
            },
            "prompts": self.prompts,
            "dtype": str(self.backbone.denoiser.dtype),
            "latent_shape": list(self.backbone.latent_shape),
            "shard_size": self.shard_size,
        }

    def public(self) -> dict[str, Any]:
        return {
            "kind": "base samples",
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "seed": self.seed,
        }

    @torch.no_grad()
    def shard(self, index: int) -> Drawn:
        prompts = [self.prompts[row] for row in self.rows(index)]
        latents = self.backbone.draw_latents(
            prompts,
            torch.Generator().manual_seed(self.seed * 1_000_003 + index),
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            stochastic=bool(index % 2),
        )
        return Drawn(latents.float())

    def rows(self, index: int) -> list[int]:
        """The shard's prompts."""
        return [i % len(self.prompts) for i in range(index * self.shard_size, (index + 1) * self.shard_size)]


class BaseRollouts(BaseSamples):
    """What the base draws for the prompts in turn by the policy's own stochastic sampling, and the noisy
    states it passes through.

    Guidance, and few steps, lead through states that differ from the finished latent with noise added: less
    noisy than their timestep says.
    """

    def public(self) -> dict[str, Any]:
        return super().public() | {"kind": "base rollouts"}

    @torch.no_grad()
    def shard(self, index: int) -> Drawn:
        prompts = [self.prompts[row] for row in self.rows(index)]
        table = self.backbone.prompt_table(prompts)
        kernel = ReverseKernel.of(self.backbone, self.num_inference_steps)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        rows = torch.arange(len(prompts), device=self.pipe.device)
        policy = Policy(self.backbone, kernel, table, self.guidance_scale, batch_size=len(prompts))
        trajectory = policy.rollout(rows, generator)
        return Drawn(trajectory.latents[:, -1], trajectory.latents[:, :-1], kernel.timesteps[:-1])


class EncodedImages:
    """Images resized and cropped to the base's resolution and encoded by its VAE, in an order that is random
    but always the same.

    A folder's own order goes by classes, and the first tenth is held out.

    Args:
        images: anything of a length whose items are PIL images.
        label: what tells these images from others, JSON.
        name: what a predictor's config calls them.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        images: Any,
        label: dict[str, Any],
        name: str,
        shard_size: int | None = None,
    ) -> None:
        self.backbone, self.images, self.label, self.name = Backbone.of(pipe), images, label, name
        self.shard_size = shard_size or self.backbone.usual_batch_size
        self.available = len(images)
        self.order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()

    def description(self) -> dict[str, Any]:
        vae = self.backbone.vae
        weights = {"weights": fingerprint(vae), "dtype": str(vae.dtype)}
        return self.public() | weights | {"label": self.label, "shard_size": self.shard_size}

    def public(self) -> dict[str, Any]:
        height, width = self.backbone.image_size
        return {
            "kind": "images",
            "name": self.name,
            "resolution": height if height == width else [height, width],
        }

    @torch.no_grad()
    def shard(self, index: int) -> Drawn:
        rows = self.order[index * self.shard_size : (index + 1) * self.shard_size]
        height, width = self.backbone.image_size
        return Drawn(
            self.backbone.encode_images(torch.stack([to_size(self.images[i], height, width) for i in rows]))
        )


def to_size(image: Image.Image, height: int, width: int) -> torch.Tensor:
    """The upright image, resized until it just covers height x width, its middle: (3, height, width) in
    [-1, 1]."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    if height * upright.width >= width * upright.height:
        size = [height, height * upright.width // upright.height]
    else:
        size = [width * upright.height // upright.width, width]
    return (
        center_crop(resize(pil_to_tensor(upright), size, antialias=True), [height, width]).float() / 127.5 - 1
    )


class ImageFolder:
    """The images of a folder and its subfolders, in the order of their names.

    Raises:
        ValueError: there is no such folder, it holds no image, or (when it is read) one of them cannot be
            read.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise ValueError(f"--train_data_dir {directory} is not a directory.")
        self.directory = directory
        self.paths = pictures_in(directory)
        if not self.paths:
            raise ValueError(f"--train_data_dir {no_pictures(directory)}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return read_picture(self.paths[index])

    def label(self) -> dict[str, Any]:
        """Names, sizes and times of the files: an image that is replaced makes another cache."""
        files = [
            (p.relative_to(self.directory).as_posix(), p.stat().st_size, p.stat().st_mtime_ns)
            for p in self.paths
        ]
        return {"files": hashlib.sha256(json.dumps(files).encode()).hexdigest()}


class DatasetImages:
    """The image column of a `datasets` dataset.

    Raises:
        ValueError: the package is missing, or dataset, split or column cannot be had.
    """

    def __init__(self, name: str, config_name: str | None, split: str, column: str) -> None:
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                "--dataset_name needs the package `datasets`; install it with `pip install datasets`."
            ) from error
        try:
            self.rows = datasets.load_dataset(name, config_name, split=split)
        except Exception as error:  # the package's loaders raise whatever their file readers do
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"The dataset {name} (split {split}) could not be loaded: {reason}") from error
        if column not in self.rows.column_names:
            raise ValueError(
                f"The dataset {name} has no column {column!r}; give one of {', '.join(self.rows.column_names)} with --image_column."
            )
        if not len(self.rows):
            raise ValueError(f"The dataset {name} (split {split}) holds no image.")
        self.column = column
        if not isinstance(first := self.rows[0][column], Image.Image):
            raise ValueError(
                f"The column {column!r} of the dataset {name} holds no images but {type(first).__name__}; give another --image_column."
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image.Image:
        return as_shown(self.rows[index][self.column])

    def label(self) -> dict[str, Any]:
        return {"fingerprint": self.rows._fingerprint, "column": self.column}


def collect(source: Source, teacher: Teacher, count: int | None, cache_dir: Path | None = None) -> Latents:
    """Make `count` latents (None: all there are) and their embeddings, or read those that are cached.

    Under `accelerate launch` the processes share the work through the cache, which must be on a disk that all
    of them see; without a cache each makes everything.

    Raises:
        ValueError: the source holds none, or a cache is there under this name that something else made.
        Unsound: the base or the teacher makes something that is no number.
    """
    if count is None and source.available is None:
        raise ValueError("How many latents to make must be said: give --num_images.")
    total = min(x for x in (count, source.available) if x is not None)
    shards = range(-(-total // source.shard_size))
    if cache_dir is None:
        parts = [_make(source, teacher, i) for i in tqdm(shards, desc="latents and embeddings")]
    else:
        parts = _through_cache(source, teacher, shards, cache_dir)
    return Latents.cat(parts)[:total]


def _make(source: Source, teacher: Teacher, index: int) -> Latents:
    drawn = source.shard(index)
    embeddings = teacher.encode_images(source.backbone.decode(drawn.latents.to(source.backbone.vae.device)))
    for what, numbers, advice in (
        ("latents", drawn.latents, "the base"),
        ("teacher's view of the images", embeddings, "the VAE and the teacher"),
    ):
        if not numbers.isfinite().all():
            raise Unsound(
                f"The {what} holds something that is no number; look at {advice} (with --mixed_precision fp16, take bf16)."
            )
    made = Latents.without_states(drawn.latents.cpu().contiguous(), embeddings.cpu().contiguous())
    if drawn.states is None or drawn.timesteps is None:
        return made
    return replace(made, states=drawn.states.cpu().half().contiguous(), timesteps=drawn.timesteps.cpu())


def _through_cache(source: Source, teacher: Teacher, shards: range, cache_dir: Path) -> list[Latents]:
    description = source.description() | {"teacher": fingerprint(teacher.model)}
    directory = cache_dir / f"{description['kind'].replace(' ', '-')}-{key_of(description)}"
    state = PartialState()
    with state.main_process_first():
        _open_cache(directory, description)
    found = {
        i: part
        for i in shards
        if (part := read_shard(shard_path(directory, i), state.is_main_process)) is not None
    }
    missing = [i for i in shards if i not in found]
    state.wait_for_everyone()  # nobody writes before all have seen what is missing
    mine = missing[state.process_index :: state.num_processes]
    for i in tqdm(mine, desc="latents and embeddings", disable=not (mine and state.is_main_process)):
        found[i] = _make(source, teacher, i)
        write_shard(shard_path(directory, i), found[i])
    state.wait_for_everyone()
    for i in missing:
        if i not in found and (part := read_shard(shard_path(directory, i), True)) is not None:
            found[i] = part
    if len(found) < len(shards):
        raise ValueError(
            f"The processes do not share {cache_dir}; put the cache on a disk that all of them see."
        )
    return [found[i] for i in shards]


def _open_cache(directory: Path, description: dict[str, Any]) -> None:
    path = make_directory(directory) / SOURCE_NAME
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    if path.is_file():
        if path.read_text(encoding="utf-8", errors="replace") != text:
            raise ValueError(
                f"The latents in {directory} were made by something else than its name says ({SOURCE_NAME}); delete it."
            )
        return
    write_text(path, text)


def shard_path(directory: Path, index: int) -> Path:
    return directory / f"{index:06d}.safetensors"


def _digest(part: Latents) -> str:
    digest = hashlib.sha256()
    for tensor in vars(part).values():
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def write_shard(path: Path, part: Latents) -> None:
    """Complete or not at all, with the digest of its tensors in the header."""
    write_bytes(path, save(vars(part), metadata={"sha256": _digest(part)}))


def read_shard(path: Path, say: bool = True) -> Latents | None:
    """A shard as it was written; None where there is none, or (said in a sentence) where it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            part = Latents(**{field.name: file.get_tensor(field.name) for field in fields(Latents)})
            if (file.metadata() or {}).get("sha256") == _digest(part):
                return part
    except (OSError, SafetensorError):
        pass
    if say:
        tqdm.write(f"The shard {path} is damaged and will be made again.")
    return None
