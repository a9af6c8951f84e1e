"""Every reader of weights is given damaged files: it refuses them in a sentence, or reads what was written.

What no reader can know is counted apart: another value of a tensor in a file that carries no hash.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from attack import Tally, sample
from diffusers import UNet2DConditionModel
from original_layout import save_original
from peft import LoraConfig
from safetensors.torch import load, save, save_file
from tiny_pipelines import BACKBONES
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import canvas
from common.network import Checkpoint
from common.weights import TENSORS_KEY
from critic.network import ValueNetwork
from evaluation.judge import Judge
from evaluation.unlearncanvas import load_vit
from hub.adapter import save_adapter
from hub.factors import adapter_factors
from hub.files import read_file, read_header
from hub.kohya import save_kohya
from hub.pull import check_files
from hub.push import files_to_push
from pipelines.base import load_pipeline, one_line
from pipelines.parts import CLASSES, load_part
from pipelines.supported import PARTS
from reward.classifier import ClassifierTeacher
from reward.predictor import RewardPredictor
from reward.teacher import Teacher

Tensors = dict[str, torch.Tensor]
Damage = Callable[[bytes, random.Random], bytes]
ADAPTER = "pytorch_lora_weights.safetensors"
SEEDS = 3


class Reader(NamedTuple):
    """A file of weights, what reads it, and which damage of all is tried where not all is."""

    file: Path
    read: Callable[[], Tensors]
    seed: int = 0


# --- damage
# ---------------------------------------------------------------------------------------------------------


def parts_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def on_tensors(change: Callable[[Tensors, str], None]) -> Damage:
    """Damage that leaves a valid file, its texts (and so its hash) included."""

    def damage(content: bytes, dice: random.Random) -> bytes:
        tensors, (header, _) = load(content), parts_of(content)
        weights = [name for name, tensor in sorted(tensors.items()) if is_weight(name, tensor)]
        change(tensors, dice.choice(weights))
        return save(tensors, header.get("__metadata__"))

    return damage


def is_weight(name: str, tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 0


def renamed(tensors: Tensors, name: str) -> None:
    tensors[f"{name}_"] = tensors.pop(name)


def reshaped(tensors: Tensors, name: str) -> None:
    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])


def retyped(tensors: Tensors, name: str) -> None:
    tensors[name] = (100 * tensors[name].float()).to(torch.int32)


def with_value(value: float) -> Callable[[Tensors, str], None]:
    def change(tensors: Tensors, name: str) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[-1] = value

    return change


def on_header(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Damage:
    """A header that lies of one of its tensors."""

    def damage(content: bytes, dice: random.Random) -> bytes:
        header, data = parts_of(content)
        shaped = [name for name, said in sorted(header.items()) if len(said.get("shape", [])) > 1]
        change(header, header[dice.choice(shaped)])
        return joined(header, data)

    return damage


def other_type(header: dict[str, Any], said: dict[str, Any]) -> None:
    said["dtype"] = {"F32": "I32", "F16": "I16", "BF16": "I16"}[said["dtype"]]


def flat_shape(header: dict[str, Any], said: dict[str, Any]) -> None:
    said["shape"] = [torch.Size(said["shape"]).numel()]


def beyond(header: dict[str, Any], said: dict[str, Any]) -> None:
    said["data_offsets"][1] += 1 << 20


def cut_off(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(len(content))]


def flipped_value(content: bytes, dice: random.Random) -> bytes:
    start = 8 + int.from_bytes(content[:8], "little")
    return flipped(content, dice.randrange(start, len(content)), dice)


def flipped_header(content: bytes, dice: random.Random) -> bytes:
    return flipped(content, dice.randrange(8 + int.from_bytes(content[:8], "little")), dice)


def flipped(content: bytes, at: int, dice: random.Random) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 1 << dice.randrange(8)
    return bytes(changed)


DAMAGE: dict[str, Damage] = {
    "a tensor deleted": on_tensors(lambda tensors, name: tensors.__delitem__(name)),
    "a tensor renamed": on_tensors(renamed),
    "a tensor reshaped": on_tensors(reshaped),
    "a tensor of whole numbers": on_tensors(retyped),
    "NaN": on_tensors(with_value(float("nan"))),
    "infinity": on_tensors(with_value(float("-inf"))),
    "a header that lies of a type": on_header(other_type),
    "a header that lies of a shape": on_header(flat_shape),
    "a header that points beyond the end": on_header(beyond),
    "cut off": cut_off,
    "a bit of the data": flipped_value,
    "a bit of the header": flipped_header,
}


# --- readers
# --------------------------------------------------------------------------------------------------------


def part_reader(backbone: str, part: str, layout: str) -> Callable[..., Reader]:
    """A part of a base: in one file, of a variant, or in shards with an index."""

    def make(directory: Path, pipeline_dirs: dict[str, Path]) -> Reader:
        source, folder = pipeline_dirs[backbone] / part, directory / part
        index = json.loads((pipeline_dirs[backbone] / "model_index.json").read_text())
        cls, variant = CLASSES[index[part][1]], "fp16" if layout == "fp16" else None
        if layout == "plain":
            shutil.copytree(source, folder)
        else:
            module = cls.from_pretrained(source).half() if variant else cls.from_pretrained(source)
            module.save_pretrained(
                folder, variant=variant, max_shard_size="10KB" if layout == "shards" else "5GB"
            )
        files = sorted(folder.glob("*.safetensors"))
        assert (len(files) > 1) == (layout == "shards")

        def read() -> Tensors:
            with one_line("It could not be loaded"):
                return load_part(cls, folder, "It", variant=variant, dtype=torch.float32).state_dict()

        return Reader(files[len(files) // 2], read)

    return make


def single_file_reader(backbone: str) -> Callable[..., Reader]:
    """A base in one file."""

    def make(directory: Path, pipeline_dirs: dict[str, Path]) -> Reader:
        source = pipeline_dirs[backbone]
        configs = shutil.copytree(source, directory / "configs")
        for file in configs.rglob("*.safetensors"):
            # Weights of another base lie beside the configs, which no reader may take in place of the file's.
            tensors = load(file.read_bytes())
            save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, file)
        save_original(load_pipeline(source), directory / "base.safetensors")

        def read() -> Tensors:
            pipe = load_pipeline(directory / "base.safetensors", config=str(configs))
            return {
                f"{part}.{name}": tensor
                for part in PARTS[type(pipe)]
                for name, tensor in getattr(pipe, part).state_dict().items()
            }

        return Reader(directory / "base.safetensors", read)

    return make


NETWORKS: dict[str, Checkpoint | Judge] = {
    "reward predictor": RewardPredictor(4, 8, 8, width=8, condition_dim=8, prompts=["a"]),
    "critic": ValueNetwork(4, 8, 8, width=8, condition_dim=8),
    "judge": Judge({"style": ["a", "b"]}, "a {style} image", image_size=16, widths=(8, 8)),
}


def network_reader(kind: str) -> Callable[..., Reader]:
    def make(directory: Path, pipeline_dirs: dict[str, Path]) -> Reader:
        NETWORKS[kind].save_pretrained(directory)
        return Reader(
            directory / "model.safetensors",
            lambda: type(NETWORKS[kind]).from_pretrained(directory).state_dict(),
        )

    return make


def classifier(directory: Path, pipeline_dirs: dict[str, Path]) -> Reader:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(directory)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(directory)
    return Reader(
        directory / "model.safetensors",
        lambda: ClassifierTeacher.from_pretrained(str(directory)).model.state_dict(),
    )


def clip(directory: Path, pipeline_dirs: dict[str, Path]) -> Reader:
    shutil.copytree(canvas.CLIP, directory, dirs_exist_ok=True)
    return Reader(
        directory / "open_clip_model.safetensors",
        lambda: Teacher.from_pretrained(f"local-dir:{directory}").model.state_dict(),
    )


def vision_transformer(directory: Path, pipeline_dirs: dict[str, Path]) -> Reader:
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 1, "num_classes": 51}
    model, path = timm.create_model("vit_large_patch16_224", **sizes), directory / "head.safetensors"
    save_file(model.state_dict(), path)
    return Reader(path, lambda: load_vit(path, 51).state_dict())


def adapter_reader(read: Callable[[Path], Any], twin: bool = False) -> Callable[..., Reader]:
    """An adapter that was written here, or its file in kohya's format."""

    def make(directory: Path, pipeline_dirs: dict[str, Path]) -> Reader:
        unet = UNet2DConditionModel.from_pretrained(pipeline_dirs["sd1"], subfolder="unet")
        torch.manual_seed(1)
        unet.add_adapter(LoraConfig(init_lora_weights=False, r=2, target_modules=["to_q", "to_k"]))
        file = save_adapter(directory, unet, metadata={"method": "a test", "concept": '["a cat"]'})
        file = save_kohya(directory, directory / "kohya.safetensors") if twin else file

        def answer() -> Tensors:
            read(file)
            return read_file(file)[0]

        return Reader(file, answer)

    return make


READERS: dict[str, Callable[..., Reader]] = {
    **{
        f"{backbone} {part}": part_reader(backbone, part, "plain")
        for backbone in BACKBONES
        for part in (
            "unet",
            "vae",
            "text_encoder",
            *(["text_encoder_2"] if backbone == "sdxl" else []),
        )
    },
    **{f"{part} of a variant": part_reader("sd1", part, "fp16") for part in ("unet", "text_encoder")},
    **{f"{part} in shards": part_reader("sdxl", part, "shards") for part in ("unet", "text_encoder_2")},
    **{f"{backbone} in one file": single_file_reader(backbone) for backbone in BACKBONES},
    **{kind: network_reader(kind) for kind in NETWORKS},
    "classifier": classifier,
    "CLIP": clip,
    "vision transformer": vision_transformer,
    "adapter": adapter_reader(read_file),
    "adapter to convert or merge": adapter_reader(adapter_factors),
    "adapter to push": adapter_reader(lambda file: files_to_push(file.parent)),
    "adapter that was pulled": adapter_reader(lambda file: check_files(file.parent, [file.name])),
    "adapter in kohya's format": adapter_reader(adapter_factors, twin=True),
}


@pytest.fixture(scope="module", params=READERS)
def reader(
    request: pytest.FixtureRequest, pipeline_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Reader:
    """Each reader in turn, with a whole file."""
    made = READERS[request.param](tmp_path_factory.mktemp("weights"), pipeline_dirs)
    return made._replace(seed=list(READERS).index(request.param))


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_damaged_weights_are_refused(reader: Reader, tally: Tally) -> None:
    whole = reader.file.read_bytes()
    read = {name: tensor.clone() for name, tensor in reader.read().items()}
    hashed = TENSORS_KEY in read_header(reader.file)
    accepted = []
    attacks = [(kind, seed) for kind in DAMAGE for seed in range(SEEDS)]
    for kind, seed in sample(attacks, reader.seed):
        content = DAMAGE[kind](whole, random.Random(f"{kind} {seed}"))
        reader.file.unlink()  # one that is still mapped into memory stays as it was
        reader.file.write_bytes(content)
        try:
            found = reader.read()
        except ValueError as error:
            message = str(error)
            assert message.strip() and "\n" not in message and len(message) < 4000, message
            tally("damaged weights", "refused")
            continue
        if same(found, read):
            tally("damaged weights", "read as they were")
        elif kind == "a bit of the data" and not hashed:
            tally("damaged weights", "of values that nothing tells")
        else:
            accepted.append((kind, seed))
    reader.file.unlink()
    reader.file.write_bytes(whole)
    assert not accepted


def test_what_is_refused_is_named(pipeline_dirs: dict[str, Path], tmp_path: Path) -> None:
    """By the part, the tensor, and what to do."""
    base = shutil.copytree(pipeline_dirs["sd1"], tmp_path / "base")
    (file,) = (base / "text_encoder").glob("*.safetensors")
    tensors = load(file.read_bytes())
    lost = [name for name in tensors if name.endswith("layer_norm1.bias")]
    save_file({name: tensor for name, tensor in tensors.items() if name not in lost}, file, {"format": "pt"})
    expected = rf"text_encoder of {re.escape(str(base))} lacks {len(lost)} of its .*layer_norm1\.bias.*; \w+"
    with pytest.raises(ValueError, match=expected):
        load_pipeline(base)
