from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

import canvas
from benchmarks.baselines import METHODS, ca, esd, leco, spm, uce
from benchmarks.baselines.__main__ import BaselineConfig, counted, main, parse_config
from benchmarks.baselines.command import Prepared, changed, choose_examination
from benchmarks.baselines.task import Prompts, Task, draw
from evaluation.examination import TEACHER_AS_JUDGE, JudgeExamination, TeacherExamination
from evaluation.judge import Judge
from hub.adapter import load_adapter, read_adapter_metadata
from pipelines.base import load_pipeline
from policy.lora import add_lora, base_policy
from reward.concept import ConceptSpec
from reward.teacher import Teacher

QUICK = {
    "esd": ["steps=12", "batch_size=4", "num_inference_steps=3", "learning_rate=0.02"],
    "uce": [],
    "ca": [
        "steps=40",
        "batch_size=8",
        "num_inference_steps=3",
        "images=16",
        "learning_rate=0.02",
        "regularisation=0",
    ],
    "leco": ["steps=12", "batch_size=4", "num_inference_steps=3", "learning_rate=0.05"],
    "spm": ["steps=12", "batch_size=4", "num_inference_steps=3", "learning_rate=0.02", "anchoring=10"],
}
"""Enough for a random UNet of a few thousand weights."""
SPEC = ConceptSpec(
    ["Van Gogh style"],
    ["a cat image in Van Gogh style", "a tree image in Van Gogh style"],
    [
        "a cat image in Neon style",
        "a tree image in Neon style",
        "a car image in Neon style",
        "a car image in Mosaic style",
    ],
    [["a cat image in Neon style"], ["a tree image in Neon style"]],
)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def new_task(tiny_pipeline_dir: Path) -> Callable[[], Task]:
    return lambda: Task.build(load_pipeline(tiny_pipeline_dir), SPEC)


@pytest.fixture
def task(new_task: Callable[[], Task]) -> Task:
    return new_task()


def settings(method: str, *given: str) -> Any:
    return changed(METHODS[method].settings(), [*QUICK[method], *given])


# --- the equations ----------------------------------------------------------------------------------------


def test_esd_is_led_away_from_the_concept_beyond_no_prompt() -> None:
    """The equation of arXiv 2303.07345, number by number; and as the authors' code erases a concept from a
    prompt, their scale being 1 + eta."""
    without, concept, prompt = (numbers(2, 4, 3, 3, seed=s) for s in range(3))
    target, apart = (
        esd.esd_target(concept, concept, without, eta=2.0),
        esd.esd_target(prompt, concept, without, eta=1.0),
    )
    for index in ((0, 0, 0, 0), (1, 3, 2, 1)):
        w, c, p = (tensor[index].item() for tensor in (without, concept, prompt))
        assert target[index].item() == pytest.approx(w - 2 * (c - w), abs=1e-5)
        assert apart[index].item() == pytest.approx(p - 2 * (c - w), abs=1e-5)
    torch.testing.assert_close(esd.esd_target(concept, concept, without, eta=0.0), without)


def test_what_esd_erases_and_from_what() -> None:
    assert esd.erasures(SPEC, Prompts.NAME) == [("Van Gogh style", "Van Gogh style")]
    both = replace(SPEC, concepts=["cat", "Van Gogh style"])
    assert esd.erasures(both, Prompts.SPEC) == [
        (SPEC.forget_prompts[0], "cat"),
        (SPEC.forget_prompts[1], "Van Gogh style"),
    ]


def test_leco_is_esd_where_its_neutral_and_unconditional_are_one() -> None:
    neutral, positive, unconditional = (numbers(2, 4, 3, 3, seed=s) for s in range(3))
    target = leco.leco_target(neutral, positive, unconditional, erase_scale=1.5)
    assert target[1, 2, 0, 1].item() == pytest.approx(
        (neutral - 1.5 * positive + 1.5 * unconditional)[1, 2, 0, 1].item(), abs=1e-5
    )
    of_esd = esd.esd_target(positive, positive, neutral, eta=1.5)
    torch.testing.assert_close(leco.leco_target(neutral, positive, neutral, 1.5), of_esd)
    torch.testing.assert_close(spm.spm_target(neutral, positive, 1.5), of_esd)


def test_leco_prompt_files() -> None:
    assert leco.entries(SPEC, Prompts.NAME) == [("Van Gogh style", "Van Gogh style", "", "")]
    assert leco.entries(SPEC, Prompts.SPEC)[1] == (
        SPEC.forget_prompts[1],
        SPEC.forget_prompts[1],
        *2 * SPEC.anchors[1],
    )


def test_ca_is_two_squared_errors() -> None:
    target, base_anchor, anchor, noise = (numbers(2, 1, 2, 2, seed=s) for s in range(4))
    expected = (
        sum(
            (a - b) ** 2
            for a, b in zip(target.flatten().tolist(), base_anchor.flatten().tolist(), strict=True)
        )
        / 8
    )
    expected += (
        0.5
        * sum((a - b) ** 2 for a, b in zip(anchor.flatten().tolist(), noise.flatten().tolist(), strict=True))
        / 8
    )
    assert ca.ca_loss(target, base_anchor, anchor, noise, 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_spm_anchors_are_the_likelier_the_less_they_resemble_the_concept() -> None:
    concept = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    candidates = torch.stack(
        [
            concept,
            torch.tensor([[1.0, 1.0], [0.0, 0.0]]),
            torch.tensor([[0.0, 0.0], [0.0, 3.0]]),
            -2 * concept,
        ]
    )
    distances = torch.tensor([0.0, 1 - 0.5**0.5, 1.0, 2.0])
    torch.testing.assert_close(
        spm.anchor_weights(concept, candidates), distances / distances.sum(), atol=1e-6, rtol=1e-5
    )


def test_spm_weighs_its_anchors() -> None:
    a, b, c, d = (numbers(2, 1, 2, 2, seed=s) for s in range(4))
    assert spm.spm_loss(a, b, c, d, 100.0).item() == pytest.approx(
        (F.mse_loss(a, b) + 100 * F.mse_loss(c, d)).item(), rel=1e-6
    )


def uce_objective(
    weight: torch.Tensor,
    old: torch.Tensor,
    erased: torch.Tensor,
    values: torch.Tensor,
    kept: torch.Tensor,
    s: uce.Settings,
) -> torch.Tensor:
    """What UCE minimises (arXiv 2308.14761), with its scales."""
    erasing = (erased @ weight.T - values).square().sum()
    keeping = (kept @ weight.T - kept @ old.T).square().sum()
    return s.erase_scale * erasing + s.preserve_scale * keeping + s.damping * (weight - old).square().sum()


def test_uce_is_where_the_gradient_of_its_objective_vanishes() -> None:
    old, erased, values, kept = (
        numbers(6, 5).double(),
        numbers(3, 5, seed=1).double(),
        numbers(3, 6, seed=2).double(),
        numbers(4, 5, seed=3).double(),
    )
    s = uce.Settings(erase_scale=0.7, preserve_scale=0.3, damping=0.2)
    found = uce.uce_closed_form(old, erased, values, kept, s).requires_grad_()
    uce_objective(found, old, erased, values, kept, s).backward()
    assert found.grad is not None and found.grad.abs().max() < 1e-10
    keys = (
        s.damping * torch.eye(5, dtype=torch.float64)
        + s.erase_scale * erased.T @ erased
        + s.preserve_scale * kept.T @ kept
    )
    literal = (
        s.damping * old + s.erase_scale * values.T @ erased + s.preserve_scale * old @ kept.T @ kept
    ) @ torch.linalg.inv(keys)
    torch.testing.assert_close(found.detach(), literal)


def test_uce_changes_nothing_where_nothing_is_to_change() -> None:
    old, erased, kept = numbers(6, 5), numbers(3, 5, seed=1), numbers(4, 5, seed=3)
    torch.testing.assert_close(
        uce.uce_closed_form(old, erased, erased @ old.T, kept, uce.Settings()),
        old.double(),
        atol=1e-6,
        rtol=1e-6,
    )


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.0])
def test_a_change_as_lora_loses_what_it_says(tolerance: float) -> None:
    changes = {"a": numbers(8, 6).double(), "b": numbers(4, 6, seed=1).double()}
    factors, error = uce.as_lora(changes, tolerance)
    lost = sum(
        (change - f.scale * f.up @ f.down).square().sum()
        for change, f in zip(changes.values(), factors.values(), strict=True)
    )
    assert error == pytest.approx(
        (lost / sum(change.square().sum() for change in changes.values())).sqrt().item(), abs=1e-7
    )
    assert error <= tolerance + 1e-9


def test_uce_reproduces_its_edit_on_the_unet(task: Task) -> None:
    """The adapter's weights are the closed form's, within the error that is stated."""
    facts = uce.erase(task, uce.Settings(tolerance=0.05), seed=0)
    erased, guides = uce.paired_states(
        task, SPEC.forget_prompts, [row[0] for row in SPEC.anchors], uce.States.TEXT
    )
    kept, _ = uce.paired_states(task, SPEC.retain_prompts, SPEC.retain_prompts, uce.States.TEXT)
    lost = total = 0.0
    for name, module in task.unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            weight = module.base_layer.weight.detach()
            change = (
                uce.uce_closed_form(weight, erased, guides @ weight.T, kept, uce.Settings()) - weight.double()
            )
            lost += (change - module.get_delta_weight("default").double()).square().sum().item()
            total += change.square().sum().item()
    assert total > 0 and facts["relative_error"] == pytest.approx((lost / total) ** 0.5, abs=1e-4)
    assert 0 < facts["relative_error"] <= 0.05


def test_states_are_paired_at_the_last_word(task: Task) -> None:
    text, other = "a cat image in Van Gogh style", "a tree image in Neon style"
    length, count = len(task.states(text)), [len(task.pipe.tokenizer(t).input_ids) for t in (text, other)]
    tail, of_tail = uce.paired_states(task, [text], [other], uce.States.TAIL)
    assert torch.equal(tail[0], task.states(text)[count[0] - 2]) and torch.equal(
        of_tail[0], task.states(other)[count[1] - 2]
    )
    assert len(tail) == len(of_tail) == length - max(count) + 2
    whole, of_whole = uce.paired_states(task, [text], [text], uce.States.TEXT)
    assert torch.equal(whole, of_whole) and torch.equal(
        whole, task.states(text)[1:]
    )  # all but the start-of-text token


# --- what they share --------------------------------------------------------------------------------------


def test_draws_are_even_and_their_seeds() -> None:
    def drawn(count: int, seed: int) -> list[str]:
        return draw(["a", "b", "c"], count, torch.Generator().manual_seed(seed))

    assert sorted(drawn(6, 0)) == ["a", "a", "b", "b", "c", "c"] and len(set(drawn(2, 0))) == 2
    assert drawn(2, 3) == drawn(2, 3) and len({tuple(drawn(2, seed)) for seed in range(20)}) > 2


def test_a_partial_denoising_is_the_stock_pipelines(task: Task) -> None:
    """All steps of it give the latents of the pipeline's own loop."""
    prompts = SPEC.forget_prompts

    def denoise(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return task.denoise(prompts, steps, generator, num_inference_steps=4, guidance_scale=3.0)

    x, t = denoise(4)
    task.pipe.scheduler = task.scheduler
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = task.pipe(
        prompts, latents=noise, num_inference_steps=4, guidance_scale=3.0, output_type="latent"
    ).images
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-4)
    assert t == 0
    half, t = denoise(2)
    assert t == task.scheduler.timesteps[2] and not torch.allclose(half, x)


def test_the_bases_predictions_do_not_depend_on_the_adapter(task: Task) -> None:
    x, t = numbers(2, 4, 8, 8), torch.tensor([100, 900])
    expected = task.predict(x, t, SPEC.forget_prompts).detach()
    parameters = add_lora(task.unet, 2, 2, ["attn2.to_k"])
    with torch.no_grad():
        for p in parameters:
            p += 0.3
    found, other = task.predict_base(x, t, SPEC.forget_prompts, SPEC.retain_prompts[:2])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(other, expected) and not torch.allclose(
        task.predict(x, t, SPEC.forget_prompts), expected
    )


def test_settings_are_changed_by_name() -> None:
    found = changed(
        METHODS["leco"].settings(),
        ["learning_rate=1e-4", "steps=7", "prompts=spec", "target_modules=to_k,to_v"],
    )
    assert (found.learning_rate, found.steps, found.prompts, found.target_modules) == (
        1e-4,
        7,
        Prompts.SPEC,
        ("to_k", "to_v"),
    )
    with pytest.raises(ValueError, match=r"'rate'.*\blearning_rate\b"):
        changed(METHODS["leco"].settings(), ["rate=1"])
    with pytest.raises(ValueError, match=r"\bsteps\b.*'many'"):
        changed(METHODS["leco"].settings(), ["steps=many"])


def test_every_sample_that_a_unet_gets_counts(task: Task) -> None:
    add_lora(task.unet, 2, 2, ["attn2.to_k"])
    with counted(task.unet) as count:
        task.denoise(SPEC.forget_prompts, 3, torch.Generator(), num_inference_steps=4, guidance_scale=3.0)
        task.predict_base(numbers(2, 4, 8, 8), torch.tensor(5), SPEC.forget_prompts, SPEC.forget_prompts)
    task.predict(numbers(2, 4, 8, 8), torch.tensor(5), SPEC.forget_prompts)
    assert count.samples == 3 * 2 * 2 + 2 * 2


# --- each method ------------------------------------------------------------------------------------------


@torch.no_grad()
def moved(task: Task, prompts: list[str]) -> float:
    """How far the adapter has moved the predictions for these prompts, in all."""
    x, t = numbers(8, 4, 8, 8, seed=5), torch.arange(100, 900, 100)
    texts = [prompts[i % len(prompts)] for i in range(8)]
    (base,) = task.predict_base(x, t, texts)
    return F.mse_loss(task.predict(x, t, texts), base).item()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "ca"])
def test_the_concept_moves_more_than_what_is_kept(method: str, task: Task) -> None:
    """By the concept's name where a method takes it: to a random text encoder, prompts that differ in one
    word are nearly the same."""
    named = hasattr(settings(method), "prompts")
    before = {name: p.clone() for name, p in task.unet.named_parameters()}
    METHODS[method].erase(task, settings(method, *(["prompts=name"] if named else [])), seed=0)
    after = {
        name.replace(".base_layer", ""): p for name, p in task.unet.named_parameters() if "lora" not in name
    }
    assert before.keys() == after.keys() and all(
        torch.equal(p, after[name]) and not after[name].requires_grad for name, p in before.items()
    )
    assert (
        moved(task, SPEC.concepts if named else SPEC.forget_prompts)
        > 1.2 * moved(task, SPEC.retain_prompts)
        > 0
    )


@torch.no_grad()
def test_ca_leads_the_concept_to_its_anchors(task: Task) -> None:
    """Its other term holds what is kept to the truth, from which a random base is as far as can be; so it
    is left out here."""
    x, t = numbers(8, 4, 8, 8, seed=5), torch.arange(100, 900, 100)
    forget, anchors = SPEC.forget_prompts * 4, [row[0] for row in SPEC.anchors] * 4
    with torch.enable_grad():
        METHODS["ca"].erase(task, settings("ca"), seed=0)
    before, goal = task.predict_base(x, t, forget, anchors)
    assert F.mse_loss(task.predict(x, t, forget), goal) < 0.5 * F.mse_loss(before, goal)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "uce"])
def test_gradients_reach_the_adapter_alone_and_all_of_it(method: str, task: Task) -> None:
    """A weight of the base with a gradient would be trained by nobody; a matrix of the adapter that stays
    as it began would not be trained either."""
    METHODS[method].erase(task, settings(method, "steps=3"), seed=0)
    assert all(p.requires_grad == ("lora" in name) for name, p in task.unet.named_parameters())
    ups = {name: p for name, p in task.unet.named_parameters() if "lora_B" in name}  # these begin as zeros
    assert ups and all(p.abs().max() > 0 for p in ups.values())
    targets = settings(method).target_modules
    assert {name.split(".lora_")[0] for name in ups} == {
        name.removesuffix(".base_layer")
        for name, _ in task.unet.named_modules()
        if name.endswith(tuple(f"{t}.base_layer" for t in targets))
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_its_seeds(method: str, new_task: Callable[[], Task]) -> None:
    """UCE has no chance in it but the anchor, of which each prompt has one here."""

    def weights(seed: int) -> dict[str, torch.Tensor]:
        task = new_task()
        METHODS[method].erase(task, settings(method, *([] if method == "uce" else ["steps=2"])), seed)
        return {name: p.detach().clone() for name, p in task.unet.named_parameters() if "lora" in name}

    one, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(p, again[name]) for name, p in one.items())
    assert any(not torch.equal(p, other[name]) for name, p in one.items()) == (method != "uce")


# --- the command line ------------------------------------------------------------------------------------


Line = Callable[..., BaselineConfig]


@pytest.fixture
def line(tiny_pipeline_dir: Path, tiny_reward_dir: Path, tmp_path: Path) -> Line:
    """Settings of a quick run on the tiny pipeline, judged by a random judge unless told otherwise."""
    torch.manual_seed(0)
    Judge(
        {"style": ["Van Gogh", "Neon"], "object": ["cat", "car"]}, "a {object} image in {style} style", 16
    ).save_pretrained(tmp_path / "judge")

    def make(method: str, *more: str, judge: bool = True) -> BaselineConfig:
        named = {
            "method": method,
            "concept": "Van Gogh style",
            "pretrained_model_name_or_path": tiny_pipeline_dir,
            "reward_model_name_or_path": tiny_reward_dir,
            "clip_model": f"local-dir:{canvas.CLIP}",
            "seed": 3,
            "evaluation_seeds": 0,
            "output_dir": tmp_path / "out",
        }
        if judge:
            named["judge_name_or_path"] = tmp_path / "judge"
        words = [word for name, value in named.items() for word in (f"--{name}", str(value))]
        steps = [] if method == "uce" else ["steps=2"]
        return parse_config([*words, "--settings", *QUICK[method], *steps, *more])

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_what_the_training_script_leaves(
    method: str, line: Line, tiny_pipeline_dir: Path
) -> None:
    config = line(method)
    main(config)
    out = config.output.output_dir
    assert {p.name for p in out.iterdir()} == {
        "pytorch_lora_weights.safetensors",
        "results.json",
        "before_after.png",
        "README.md",
    }
    results = json.loads((out / "results.json").read_text())
    assert (
        results["concept"] == ["Van Gogh style"]
        and results["settings"]["method"] == method
        and results["settings"]["seed"] == 3
    )
    assert {*results["adapter"]} == {*results["base"]} >= {"UA", "IRA", "CRA"} and results["judge"] == "judge"
    assert {"iterations", "images", "unet_samples", "seconds", "peak_memory_mb"} == set(results["training"])
    assert len(results["forget_prompts"]) == 3 and len(results["retain_prompts"]) == 6
    assert (results["relative_error"] is not None) == (method == "uce")

    header = read_adapter_metadata(out)
    assert (
        header["method"] == results["method"]
        and header["modelspec.architecture"]
        and json.loads(header["results"])["adapter"]
    )
    card = (out / "README.md").read_text()
    assert results["method"].split(" (")[0] in card and "Critic-guided" not in card

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    base = UNet2DConditionModel.from_pretrained(tiny_pipeline_dir, subfolder="unet")
    load_adapter(pipe, out)
    x, states = numbers(1, 4, 8, 8), numbers(1, 7, 16)
    with torch.no_grad():
        assert not torch.allclose(pipe.unet(x, 500, states).sample, base(x, 500, states).sample, atol=1e-6)
        with base_policy(pipe.unet):
            assert torch.equal(pipe.unet(x, 500, states).sample, base(x, 500, states).sample)


def test_what_is_there_is_not_written_over(line: Line) -> None:
    config = line("uce")
    out = config.output.output_dir
    out.mkdir()
    (out / "notes.txt").touch()
    with pytest.raises(ValueError, match=f"--output_dir {out}"):
        main(config)
    main(line("uce", "--overwrite_output_dir"))
    assert (out / "results.json").is_file()


def test_a_prompt_file_of_the_user_decides_for_every_method(line: Line, tmp_path: Path) -> None:
    """The spec is resolved as for our own training: from the same flags."""
    (tmp_path / "forget.txt").write_text("a cat image in Van Gogh style\n")
    results = main(line("uce", "--forget_prompts", str(tmp_path / "forget.txt")))
    assert results["forget_prompts"] == ["a cat image in Van Gogh style"]


def test_a_base_of_another_world_is_judged_by_the_teacher(line: Line) -> None:
    """The bundled judge knows nothing of its images, and may know nothing of its concepts."""
    results = main(line("uce", "--concept", "unicorn", judge=False))
    assert results["judge"] == TEACHER_AS_JUDGE and results["concept"] == ["unicorn"]
    assert results["adapter"]["UA"] is not None and results["adapter"]["CRA"] is None


def test_the_judge_is_the_named_one_or_the_bundled_one_for_the_bundled_base(task: Task, line: Line) -> None:
    teacher = Teacher.from_pretrained(f"local-dir:{canvas.CLIP}", None, "cpu")
    prepared = Prepared(task, uce.Settings(), teacher)

    def chosen(*given: str) -> JudgeExamination | TeacherExamination:
        required = ["--method", "uce", "--concept", "Van Gogh style", "--output_dir", "out"]
        return choose_examination(parse_config([*required, *given]).task, prepared)

    bundled, elsewhere = chosen(), chosen("--pretrained_model_name_or_path", "another-world")
    assert bundled.identity() == Judge.from_pretrained(canvas.JUDGE).identity()
    assert isinstance(elsewhere, TeacherExamination)
    named = choose_examination(line("uce").task, prepared)
    assert named.name == "judge" and named.targets == {"style": {"Van Gogh"}}
    unknown = Prepared(replace_concept(task, "unicorn"), uce.Settings(), teacher)
    with pytest.raises(ValueError, match="unicorn"):
        choose_examination(line("uce").task, unknown)


def replace_concept(task: Task, concept: str) -> Task:
    return replace(task, spec=replace(SPEC, concepts=[concept]))


def test_published_settings_that_are_kept() -> None:
    assert esd.Settings().eta == leco.Settings().erase_scale == spm.Settings().erase_scale == 1.0
    assert (
        leco.Settings().rank,
        leco.Settings().lora_alpha,
        spm.Settings().rank,
        spm.Settings().anchors,
    ) == (4, 1.0, 1, 4)
    assert (uce.Settings().erase_scale, uce.Settings().preserve_scale, uce.Settings().damping) == (
        1.0,
        1.0,
        0.5,
    )
    assert ca.Settings().images == 200 and ca.Settings().target_modules == uce.Settings().target_modules == (
        "attn2.to_k",
        "attn2.to_v",
    )
