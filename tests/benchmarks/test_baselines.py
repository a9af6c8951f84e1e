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
from tiny_pipelines import FLOWS
from transformers import PreTrainedModel

import canvas
from benchmarks.baselines import METHODS, ca, esd, hirm, leco, rece, spm, uce
from benchmarks.baselines.__main__ import BaselineConfig, main, parse_config
from benchmarks.baselines.command import Prepared, changed, choose_examination
from benchmarks.baselines.task import Prompts, Task, draw
from evaluation.examination import TEACHER_AS_JUDGE, JudgeExamination, TeacherExamination
from evaluation.judge import Judge
from hub.adapter import load_adapter, read_adapter_metadata, save_adapter
from pipelines.base import BaseConfig, load_base, load_pipeline
from pipelines.generate import adapter_disabled
from pipelines.meter import counted
from policy.lora import add_lora
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
    "rece": ["preserve_scale=1.0"],
    "hirm": ["steps=30", "batch_size=2", "learning_rate=0.02"],
}
"""Enough for a random UNet of a few thousand weights."""
CLOSED = ("uce", "rece")
"""Methods that solve equations, and neither take steps nor draw."""
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


def test_rece_derives_the_state_that_is_still_mapped_to_the_concept() -> None:
    """Brute force: the least squares of all layers and of the regularisation, stacked; without the latter
    and with layers of full rank the state is found again exactly."""
    base = {name: numbers(6, 5, seed=s).double() for s, name in enumerate("ab")}
    edited = {name: w + 0.5 * numbers(6, 5, seed=9).double() for name, w in base.items()}
    states = numbers(3, 5, seed=3).double()
    found = rece.derived_states(base, edited, states, 0.3)
    rows = torch.cat([*edited.values(), 0.3**0.5 * torch.eye(5, dtype=torch.float64)])
    goals = torch.cat(
        [*(w @ states.T for w in base.values()), torch.zeros(5, len(states), dtype=torch.float64)]
    )
    torch.testing.assert_close(found, torch.linalg.lstsq(rows, goals).solution.T)

    def objective(x: torch.Tensor) -> torch.Tensor:
        missed = sum((x @ edited[n].T - states @ base[n].T).square().sum() for n in base)
        return missed + 0.3 * x.square().sum()

    x = found.clone().requires_grad_()
    objective(x).backward()
    assert x.grad is not None and x.grad.abs().max() < 1e-10
    assert all(objective(found) < objective(found + 0.01 * numbers(3, 5, seed=s)) for s in range(5, 9))
    torch.testing.assert_close(rece.derived_states(base, base, states, 0.0), states)
    assert rece.derived_states(base, edited, states, 30.0).norm() < found.norm()


def test_rece_erases_what_it_derives(task: Task) -> None:
    """After an edit the derived states come near to what the base makes of the concept; RECE's next edit
    takes that away, from the weights of the edit before."""
    s = rece.Settings(regularisation=1e-3, tolerance=0.0)
    base, states = uce.weights_to_edit(task.denoiser, s.target_modules), uce.edited_states(task, s, 0)
    once = uce.edit(base, states, s)
    derived = rece.derived_states(base, once, states.erased, s.regularisation)

    def missed(edited: dict[str, torch.Tensor], x: torch.Tensor) -> float:
        return sum((x @ edited[n].T - states.erased @ w.T).square().sum().item() for n, w in base.items())

    assert missed(once, derived) < 0.5 * missed(once, states.erased)
    facts = rece.erase(task, s, seed=0)
    twice = {
        name.removesuffix(".base_layer"): module.weight.double()
        + task.denoiser.get_submodule(name.removesuffix(".base_layer")).get_delta_weight("default").double()
        for name, module in task.denoiser.named_modules()
        if name.endswith(tuple(f"{t}.base_layer" for t in s.target_modules))
    }
    expected = uce.edit(once, states._replace(erased=derived), s)
    assert facts["iterations"] == 2 and twice.keys() == base.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(twice[name], weight, atol=1e-5, rtol=1e-4)
    assert missed(twice, derived) > 2 * missed(once, derived)


def test_rece_without_iterations_is_uce(new_task: Callable[[], Task]) -> None:
    found = []
    for method, given in (("uce", []), ("rece", ["iterations=0"])):
        task = new_task()
        scales = ["preserve_scale=0.3", "damping=0.2"]
        METHODS[method].erase(task, settings(method, *given, *scales), seed=0)
        found.append({name: p for name, p in task.denoiser.named_parameters() if "lora" in name})
    assert all(torch.equal(p, found[1][name]) for name, p in found[0].items())


def test_hirm_is_a_squared_distance_to_scaled_directions() -> None:
    found, directions = numbers(2, 3, 4), numbers(2, 3, 4, seed=1)
    distances = [
        sum((h - 2.0 * d) ** 2 for h, d in zip(a, b, strict=True))
        for a, b in zip(found.flatten(0, 1).tolist(), directions.flatten(0, 1).tolist(), strict=True)
    ]
    loss = hirm.hirm_loss(found, directions, 2.0)
    assert loss.item() == pytest.approx(sum(distances) / len(distances), rel=1e-5)
    assert hirm.hirm_loss(directions[0].expand(2, 3, 4), directions[0], 1.0) == 0


def test_what_hirm_erases_and_what_it_leads_it_to() -> None:
    chance = torch.Generator().manual_seed(0)
    assert hirm.pairs(SPEC, Prompts.NAME, chance) == [("Van Gogh style", "")]
    expected = [(p, row[0]) for p, row in zip(SPEC.forget_prompts, SPEC.anchors, strict=True)]
    assert hirm.pairs(SPEC, Prompts.SPEC, chance) == expected


@torch.no_grad()
def test_what_hirm_looks_at_is_the_last_blocks_attention(task: Task) -> None:
    prompts, encoder = SPEC.forget_prompts, task.pipe.text_encoder
    found = hirm.representations(task.pipe, prompts)
    assert found.shape == (2, task.pipe.tokenizer.model_max_length, encoder.config.hidden_size)
    assert not any(module._forward_hooks for module in encoder.modules())
    expected = []
    (last,) = [m for n, m in encoder.named_modules() if n.endswith("layers.1.self_attn")]
    with_hook = last.register_forward_hook(lambda module, inputs, output: expected.append(output[0]))
    task.pipe.encode_prompt(prompts, "cpu", 1, False)
    with_hook.remove()
    assert torch.equal(found, expected[0])


@pytest.mark.parametrize("direction", hirm.Direction)
def test_hirm_lowers_its_objective_and_moves_the_first_block_alone(
    direction: hirm.Direction, task: Task
) -> None:
    anchors = [row[0] for row in SPEC.anchors]
    pipe, losses = task.pipe, []
    encoder = pipe.text_encoder
    with torch.no_grad():
        goal = hirm.representations(pipe, anchors)
        before = hirm.representations(pipe, SPEC.forget_prompts)
    weights = {name: p.clone() for name, p in encoder.named_parameters()}

    @torch.no_grad()
    def watch(step: int) -> None:
        losses.append(hirm.hirm_loss(hirm.representations(pipe, SPEC.forget_prompts), goal, 1.0).item())

    METHODS["hirm"].erase(task, settings("hirm", f"direction={direction}"), 0, watch)
    at_first = hirm.hirm_loss(before, goal, 1.0).item()
    assert (losses[-1] < 0.5 * at_first) == (direction == hirm.Direction.SEMANTIC)
    after = {name.replace(".base_layer", ""): p for name, p in encoder.named_parameters()}
    assert all(torch.equal(p, after[name]) for name, p in weights.items())
    adapted = {name.split(".lora_")[0] for name in after if "lora" in name}
    assert len(adapted) == 6 and all("layers.0." in name for name in adapted)
    assert not any("lora" in name for name, _ in task.denoiser.named_parameters())
    if direction == hirm.Direction.RANDOM:
        with torch.no_grad():
            moved = hirm.representations(pipe, SPEC.forget_prompts) - before
        assert moved.norm() > 0.5 * before.norm()


def test_uce_reproduces_its_edit_on_the_unet(task: Task) -> None:
    """The adapter's weights are the closed form's, within the error that is stated."""
    facts = uce.erase(task, uce.Settings(tolerance=0.05), seed=0)
    erased, guides = uce.paired_states(
        task, SPEC.forget_prompts, [row[0] for row in SPEC.anchors], uce.States.TEXT
    )
    kept, _ = uce.paired_states(task, SPEC.retain_prompts, SPEC.retain_prompts, uce.States.TEXT)
    lost = total = 0.0
    for name, module in task.denoiser.named_modules():
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
    parameters = add_lora(task.denoiser, 2, 2, ["attn2.to_k"])
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
    add_lora(task.denoiser, 2, 2, ["attn2.to_k"])
    with counted(task.denoiser) as count:
        task.denoise(SPEC.forget_prompts, 3, torch.Generator(), num_inference_steps=4, guidance_scale=3.0)
        task.predict_base(numbers(2, 4, 8, 8), torch.tensor(5), SPEC.forget_prompts, SPEC.forget_prompts)
    task.predict(numbers(2, 4, 8, 8), torch.tensor(5), SPEC.forget_prompts)
    assert count.samples == 3 * 2 * 2 + 2 * 2


# --- each method ------------------------------------------------------------------------------------------


def adapted(method: str, task: Task) -> UNet2DConditionModel | PreTrainedModel:
    """What a method puts its adapter on."""
    return task.pipe.text_encoder if method == "hirm" else task.denoiser


@torch.no_grad()
def moved(task: Task, prompts: list[str]) -> float:
    """How far the adapter has moved the predictions for these prompts, in all."""
    x, t = numbers(8, 4, 8, 8, seed=5), torch.arange(100, 900, 100)
    texts = [prompts[i % len(prompts)] for i in range(8)]

    def predict() -> torch.Tensor:
        """Of the prompts as they are encoded now."""
        return Task.build(task.pipe, task.spec).predict(x, t, texts)

    with adapter_disabled(task.pipe):
        base = predict()
    return F.mse_loss(predict(), base).item()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "ca"])
def test_the_concept_moves_more_than_what_is_kept(method: str, task: Task) -> None:
    """By the concept's name where a method takes it: to a random text encoder, prompts that differ in one
    word are nearly the same."""
    named = hasattr(settings(method), "prompts")
    carrier = adapted(method, task)
    before = {name: p.clone() for name, p in carrier.named_parameters()}
    METHODS[method].erase(task, settings(method, *(["prompts=name"] if named else [])), seed=0)
    after = {
        name.replace(".base_layer", ""): p for name, p in carrier.named_parameters() if "lora" not in name
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


@pytest.mark.parametrize("method", [name for name in METHODS if name not in CLOSED])
def test_gradients_reach_the_adapter_alone_and_all_of_it(method: str, task: Task) -> None:
    """A weight of the base with a gradient would be trained by nobody; a matrix of the adapter that stays
    as it began would not be trained either."""
    METHODS[method].erase(task, settings(method, "steps=3"), seed=0)
    carrier = adapted(method, task)
    assert all(p.requires_grad == ("lora" in name) for name, p in carrier.named_parameters())
    ups = {name: p for name, p in carrier.named_parameters() if "lora_B" in name}  # these begin as zeros
    assert ups and all(p.abs().max() > 0 for p in ups.values())
    targets = settings(method).target_modules
    assert {name.split(".lora_")[0] for name in ups} == {
        name.removesuffix(".base_layer")
        for name, _ in carrier.named_modules()
        if name.endswith(tuple(f"{t}.base_layer" for t in targets))
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_its_seeds(method: str, new_task: Callable[[], Task]) -> None:
    """A closed form has no chance in it but the anchor, of which each prompt has one here."""

    def weights(seed: int) -> dict[str, torch.Tensor]:
        task = new_task()
        METHODS[method].erase(task, settings(method, *([] if method in CLOSED else ["steps=2"])), seed)
        parameters = adapted(method, task).named_parameters()
        return {name: p.detach().clone() for name, p in parameters if "lora" in name}

    one, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(p, again[name]) for name, p in one.items())
    assert any(not torch.equal(p, other[name]) for name, p in one.items()) == (method not in CLOSED)


# --- on transformers --------------------------------------------------------------------------------------


@pytest.fixture
def on_flow(flow_dirs: dict[str, Path]) -> Callable[[str], Task]:
    """A task on a random transformer."""
    return lambda kind: Task.build(load_base(BaseConfig(str(flow_dirs[kind]), resolution=16)), SPEC)


@torch.no_grad()
def predicted(task: Task, prompts: list[str]) -> torch.Tensor:
    x = numbers(len(prompts), *task.backbone.latent_shape, seed=5)
    return task.predict(x, torch.full((len(prompts),), 500.0), prompts)


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if not m.needs_unet])
def test_a_method_for_transformers_leaves_an_adapter_that_loads(
    method: str, kind: str, on_flow: Callable[[str], Task], tmp_path: Path
) -> None:
    task = on_flow(kind)
    if (method, kind) == ("uce", "z-image"):
        with pytest.raises(ValueError, match="ZImagePipeline; take another method"):
            METHODS[method].erase(task, settings(method), 0)
        return
    texts = SPEC.forget_prompts
    before = predicted(task, texts)
    with counted(task.denoiser) as count:
        METHODS[method].erase(task, settings(method, *([] if method in CLOSED else ["steps=2"])), 0)
    assert (count.samples > 0) == (method not in CLOSED)
    after = predicted(task, texts)
    assert (after - before).abs().max() > 1e-5
    save_adapter(tmp_path, task.denoiser)
    fresh = on_flow(kind)
    load_adapter(fresh.pipe, tmp_path)
    torch.testing.assert_close(predicted(fresh, texts), after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_uce_leads_the_text_of_a_transformer_to_its_anchor(kind: str, on_flow: Callable[[str], Task]) -> None:
    """With nothing to keep, what comes in of a forget prompt is what came in of its anchor."""
    task = on_flow(kind)
    anchors = [row[0] for row in SPEC.anchors]
    goal = predicted(task, anchors)
    before = F.mse_loss(predicted(task, SPEC.forget_prompts), goal)
    uce.erase(task, uce.Settings(preserve_scale=0.0, damping=1e-6, tolerance=0.0), 0)
    assert F.mse_loss(predicted(task, SPEC.forget_prompts), goal) < 0.2 * before


def test_t5s_tokens_stand_after_clips(on_flow: Callable[[str], Task]) -> None:
    task = on_flow("sd3")
    (clip, first), (t5, second) = uce.windows(task.backbone)
    text = "a cat image in Neon style"
    states = task.states(text)
    assert len(states[first]) == clip.model_max_length and len(states[second]) == 256
    last = len(t5(text).input_ids) - 2
    paired, _ = uce.paired_states(task, [text], [text], uce.States.TAIL)
    assert any(torch.equal(row, states[second][last]) for row in paired)
    alone, _ = uce.paired_states(on_flow("flux"), [text], [text], uce.States.TEXT)
    assert len(alone) == 512  # T5 has no start-of-text token


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
        steps = [] if method in CLOSED else ["steps=2"]
        return parse_config([*words, "--settings", *QUICK[method], *steps, *more])

    return make


def test_a_method_for_unets_refuses_a_transformer(line: Line, flow_dirs: dict[str, Path]) -> None:
    config = line("rece")
    base = replace(config.task.base, pretrained_model_name_or_path=str(flow_dirs["sd3"]))
    with pytest.raises(ValueError, match=r"RECE.*is for UNets.*one of esd, uce, ca, leco, spm"):
        main(replace(config, task=replace(config.task, base=base)))


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
    assert (results["relative_error"] is not None) == (method in CLOSED)

    header = read_adapter_metadata(out)
    assert (
        header["method"] == results["method"]
        and header["modelspec.architecture"]
        and json.loads(header["results"])["adapter"]
    )
    card = (out / "README.md").read_text()
    assert results["method"].split(" (")[0] in card and "Critic-guided" not in card

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)

    @torch.no_grad()
    def predict() -> torch.Tensor:
        states, _ = pipe.encode_prompt("a cat image in Van Gogh style", "cpu", 1, False)
        return pipe.unet(numbers(1, 4, 8, 8), 500, states).sample

    base = predict()
    pipe.load_lora_weights(out)
    (name,) = pipe.get_active_adapters()
    assert not torch.allclose(predict(), base, atol=1e-6)
    with adapter_disabled(pipe):
        assert torch.equal(predict(), base)
    pipe.set_adapters(name, 0.0)
    assert torch.equal(predict(), base)
    pipe.unload_lora_weights()
    assert torch.equal(predict(), base)
    load_adapter(pipe, out)
    assert not torch.allclose(predict(), base, atol=1e-6)


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
    assert (rece.Settings().erase_scale, rece.Settings().damping) == (1.0, 0.1)
    assert (rece.Settings().iterations, rece.Settings().preserve_scale) == (1, 0.1)
    assert (hirm.Settings().semantic_scale, hirm.Settings().random_scale) == (1.0, 500.0)
    assert ca.Settings().images == 200 and ca.Settings().target_modules == uce.Settings().target_modules == (
        "attn2.to_k",
        "attn2.to_v",
    )
