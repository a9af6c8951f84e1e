"""The sections of the page; each is empty if the run has nothing for it. All texts come from users and are
escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from common.names import without_path
from evaluation.report.page import table
from evaluation.report.run import Run, data_uri
from evaluation.report.svg import Bar, Point, bars, lines, pareto
from hub.card import DEFINED, GRID_NAME, METRICS, UNLOADABLE, listed, suffered

CURVES = {
    "Forgotten: share of forget images": ("forgotten", "replaced"),
    "Retained images recognised": ("recognised",),
    "Rewards": ("forget_reward", "retain_reward"),
    "KL to the base": ("retain_kl", "anchor_kl", "worst_anchor_kl"),
    "KL of an update": ("approx_kl", "step_kl"),
    "Gradient norm": ("grad_norm",),
    "Clipped ratios": ("clip_fraction",),
    "Critic's loss": ("critic_loss",),
}
"""Charts over the iterations, and the metrics of diagnostics.jsonl in each."""
SHARES = {"forgotten", "replaced", "recognised"}
SMALL = 128
"""Images smaller than this many pixels are shown with sharp edges."""


def heading(run: Run) -> str:
    """The concept, the base, and the headline metrics."""
    results = run.results or run.probes
    concept = html.escape(", ".join(listed(results.get("concept"))) or "a concept")
    base = html.escape(without_path(str(results.get("base_model_name_or_path") or "a pipeline")))
    judge = html.escape(str(results.get("judge") or "nobody yet"))
    before, after = run.results.get("base") or {}, run.results.get("adapter") or {}
    tiles = [
        f'<div><span class="soft">{name}</span><b id="{name}">{after[name]:.1f} %</b>'
        f'<span class="soft">{_range(after, name)} base {_value(before, name)}</span></div>'
        for name in METRICS
        if after.get(name) is not None
    ]
    images = f" {results['images_per_side']} images a side." if results.get("images_per_side") else ""
    return (
        f'<h1>Erased: {concept}</h1><p class="soft">From {base}. Judge: {judge}.{images} In brackets 95&nbsp;% '
        "intervals.</p>" + (f'<div class="big">{"".join(tiles)}</div>' if tiles else "")
    )


def metrics(run: Run) -> str:
    """Every metric of base and adapter, and its meaning."""
    before, after = run.results.get("base") or {}, run.results.get("adapter") or {}
    names = [name for name in (*DEFINED, "CRA_retained", "CRA_forgotten") if after.get(name) is not None]
    if not names:
        return ""
    rows = [
        [name, _cell(before, name), _cell(after, name), str((after.get("images") or {}).get(name, ""))]
        for name in names
    ]
    for name, found in (after.get("measures") or {}).items():
        other = (before.get("measures") or {}).get(name)
        rows.append([name, _measure(other), _measure(found), ""])
    meaning = "".join(
        f"<li><b>{name}</b>, {html.escape(text)}</li>" for name, text in DEFINED.items() if name in names
    )
    found = table(["percent", "base", "with the adapter", "images"], rows, 1)
    return f"<h2>Metrics</h2>{found}<ul class='soft'>{meaning}</ul>"


def images(run: Run) -> str:
    """Base and adapter from the same noise: the evaluation's images one by one, else the picture of them."""
    picture = run.picture(GRID_NAME)
    if run.shown:
        parts = []
        for forget, name in (
            (True, "To forget: prompts that ask for it"),
            (False, "To keep: all other prompts"),
        ):
            cells = [
                f"<figure>{_image(one.before, f'{one.prompt}, base')}"
                f"{_image(one.after, f'{one.prompt}, with the adapter')}"
                f"<figcaption>{html.escape(one.prompt)} · seed {one.seed}</figcaption></figure>"
                for one in run.shown
                if one.forget == forget
            ]
            parts.append(
                f'<h3>{name}</h3><div class="grid{" forget" if forget else ""}">{"".join(cells)}</div>'
                if cells
                else ""
            )
        return (
            '<h2>Before and after</h2><p class="soft">Base above, adapter below, from the same noise; chosen '
            f"without looking.</p>{''.join(parts)}"
        )
    if picture:
        text = "Images of the base above, with the adapter below, from the same noise"
        return f"<h2>Before and after</h2><figure class='scroll'>{_image(picture, text, False)}</figure>"
    return ""


def price(run: Run) -> str:
    """UA against IRA and CRA, at several weights of the adapter."""
    sides = run.results.get("scales") or []
    if not sides:
        return ""
    names = [name for name in ("IRA", "CRA") if any(side.get(name) is not None for side in sides)]
    charts = []
    for name in names:
        points = [
            ((side["UA"], side[name]), (side["ci95"]["UA"], side["ci95"][name]), f"{side['scale']:g}")
            for side in sides
            if side.get(name) is not None and side.get("UA") is not None
        ]
        charts.append(
            pareto(f"{name} against UA; numbers are weights", points, "UA: the concept is gone (percent)")
        )
    rows = [[f"{side['scale']:g}", *(_cell(side, name) for name in ("UA", *names))] for side in sides]
    return (
        f'<h2>The price of forgetting</h2><div class="charts">{"".join(charts)}</div>'
        f"{table(['weight', 'UA', *names], rows, 1)}"
    )


def damage(run: Run) -> str:
    """What suffered most, and the accuracy on every class."""
    before, after = ((run.results.get(side) or {}).get("per_class") or {} for side in ("base", "adapter"))
    if not after:
        return ""
    fallen = suffered(run.results)
    worst = [
        [domain, name, f"{base:.1f}", f"{adapter:.1f}", f"{adapter - base:+.1f}"]
        for domain, name, base, adapter in fallen[:10]
    ]
    every = [
        [
            domain,
            name,
            f"{before[domain][name]:.1f}" if name in before.get(domain, {}) else "-",
            f"{value:.1f}",
        ]
        for domain, classes in after.items()
        for name, value in classes.items()
    ]
    said = (
        table(["kind", "retained", "base", "with the adapter", "change"], worst, 2)
        if worst
        else "<p>No retained class is recognised less often.</p>"
    )
    classes = table(["kind", "class", "base", "with the adapter"], every, 2)
    return (
        f"<h2>What suffered most</h2>{said}<details><summary>All classes</summary>{classes}</details>"
        '<p class="soft">Percent of images in which the judge sees the class that the prompt names.</p>'
    )


def probes(run: Run) -> str:
    """How much of the concept each probe brought back, with images."""
    found = run.probes.get("probes") or {}
    rows = [row for probe in found.values() for row in probe["rows"]]
    if not rows:
        return ""
    shown = [
        Bar(row["name"], row["adapter"]["return"], row["adapter"]["ci95"], (row["base"] or {}).get("return"))
        for row in rows
    ]
    cells = [
        [
            row["name"],
            _returned(row["adapter"]),
            _returned(row["base"]),
            *(f"{row['budget'][name]:g}" for name in ("images", "steps", "unet_samples", "seconds")),
        ]
        for row in rows
    ]
    pictures = []
    for name, probe in found.items():
        for row, path in zip(probe["rows"], run.samples.get(name) or [], strict=False):
            prompts = "; ".join(row["prompts"][:2])
            pictures.append(
                f"<figure><div class='scroll'>{_image(path, row['name'], False)}</div>"
                f"<figcaption><b>{html.escape(row['name'])}</b>: {html.escape(prompts)}, …</figcaption></figure>"
            )
    judge = html.escape(str(run.probes.get("judge") or "unknown"))
    sides = ("with the adapter", "the same on the base")
    samples = (
        "<details><summary>Images of every attempt: base above, adapter below</summary>"
        f"{''.join(pictures)}</details>"
    )
    return (
        f"<h2>How much comes back</h2><p>How often the judge ({judge}) sees the concept again. The hollow dot is "
        "the same attempt on the base without the adapter, the most it could find; plain prompts are no "
        f"attempt.</p><div class='scroll'>{bars('The concept is seen, percent', shown, sides)}</div>"
        f"{table(['attempt', *sides, 'images', 'steps', 'UNet samples', 'seconds'], cells, 1)}"
        f"{samples if pictures else ''}"
    )


def training(run: Run) -> str:
    """Curves over the iterations, and over the timesteps at the first, the middle and the last of them."""
    if not run.diagnostics:
        return ""
    charts = []
    for title, names in CURVES.items():
        series = {name.replace("_", " "): _curve(run, name) for name in names}
        bounds = (0.0, 1.0) if set(names) <= SHARES else None
        charts.append(
            lines(
                title,
                {name: points for name, points in series.items() if any(y for _, y in points)},
                "iteration",
                bounds,
            )
        )
    panels = []
    for name, rows in run.per_timestep().items():
        known = [i for i, row in enumerate(rows) if row]
        chosen = {
            f"iteration {run.diagnostics[i]['iteration']}": rows[i]
            for i in sorted({known[0], known[len(known) // 2], known[-1]})
        }
        series = {
            label: [(float(t), value) for t, value in row.items() if math.isfinite(value)]
            for label, row in chosen.items()
        }
        if any(y for points in series.values() for _, y in points):
            panels.append(lines(name.replace("_", " "), series, "timestep"))
    by_timestep = (
        '<h3>By timestep</h3><p class="soft">Noise is at the right.</p>'
        f'<div class="charts">{"".join(panels)}</div>'
    )
    return f'<h2>Training</h2><div class="charts">{"".join(charts)}</div>{by_timestep if panels else ""}'


def cost(run: Run) -> str:
    """The cost of training and evaluation; each probe states its own."""
    spent = run.results.get("training") or {}
    facts = {
        "iterations": spent.get("iterations"),
        "images drawn in training": spent.get("images"),
        "UNet samples in training": spent.get("unet_samples"),
        "seconds of training": spent.get("seconds"),
        "peak memory in training, MB": spent.get("peak_memory_mb"),
        "training stopped by": spent.get("stopped_by"),
        "rollbacks": spent.get("brakes"),
        "images judged, both sides": 2 * run.results["images_per_side"]
        if run.results.get("images_per_side")
        else None,
        "seconds of evaluation": run.results.get("evaluation_seconds"),
    }
    rows = [[name, _plain(value)] for name, value in facts.items() if value is not None]
    return f"<h2>Cost</h2>{table(['', ''], rows)}" if rows else ""


def settings(run: Run) -> str:
    """Every flag of training, of the evaluation and of the probes."""
    given = {
        f"--{name}": value
        for name, value in (run.results.get("settings") or {}).items()
        if "token" not in name or name == "attack_tokens"
    }
    tried = {f"probes: {name}": value for name, value in (run.probes.get("settings") or {}).items()}
    rows = [[name, _plain(value)] for name, value in (given | tried).items() if value not in (None, "", [])]
    prompts = run.results.get("forget_prompts") or []
    if not rows and not prompts:
        return ""
    listed_prompts = "".join(f"<li>{html.escape(prompt)}</li>" for prompt in prompts)
    asking = (
        f"<details><summary>Prompts that ask for the concept ({len(prompts)})</summary>"
        f"<ul>{listed_prompts}</ul></details>"
    )
    flags = f"<details><summary>{len(rows)} settings</summary>{table(['', ''], rows)}</details>"
    return f"<h2>Settings</h2>{asking if prompts else ''}{flags if rows else ''}"


def provenance(run: Run) -> str:
    """Where the metrics come from, and their limits."""
    results = run.results or run.probes
    facts = {
        "made on": results.get("date"),
        "command that makes it again": results.get("command"),
        "judge": results.get("judge"),
        "protocol": results.get("protocol"),
        "seeds": results.get("seeds"),
        "inference steps": results.get("num_inference_steps"),
        "guidance": results.get("guidance_scale"),
        "reward model": results.get("reward_model"),
        "critic model": results.get("critic_model"),
        "base revision": results.get("revision"),
        "versions": ", ".join(f"{name} {number}" for name, number in (results.get("versions") or {}).items()),
    }
    rows = [[name, _plain(value)] for name, value in facts.items() if value not in (None, "", [])]
    limits = [
        UNLOADABLE,
        "The metrics are about the prompts, seeds and judge named here; what is close to the concept may suffer "
        "with it.",
    ]
    if not run.probes:
        limits.append("No probe was run: how easily the concept comes back is not known.")
    if str(results.get("judge") or "").startswith("teacher"):
        limits.append(
            "The metrics come from the CLIP model that was also the reward. They are not independent and flatter "
            "the adapter."
        )
    listed_limits = "".join(f"<li>{html.escape(limit)}</li>" for limit in limits)
    return f"<h2>Provenance and limits</h2>{table(['', ''], rows)}<ul>{listed_limits}</ul>"


SECTIONS = (heading, metrics, images, price, damage, probes, training, cost, settings, provenance)


def _curve(run: Run, name: str) -> list[Point]:
    return [
        (float(line["iteration"]), float(line[name]))
        for line in run.diagnostics
        if isinstance(line.get(name), int | float)
    ]


def _value(side: Mapping[str, Any], name: str) -> str:
    return "-" if side.get(name) is None else f"{side[name]:.1f}"


def _bounds(side: Mapping[str, Any], name: str) -> Sequence[float] | None:
    """The 95 % interval [low, high]; older results have a half-width, which is left out."""
    bounds = (side.get("ci95") or {}).get(name)
    return bounds if isinstance(bounds, list) else None


def _range(side: Mapping[str, Any], name: str) -> str:
    bounds = _bounds(side, name)
    return f'<span class="n">[{bounds[0]:.1f}, {bounds[1]:.1f}]</span> ·' if bounds else ""


def _cell(side: Mapping[str, Any], name: str) -> str:
    bounds = _bounds(side, name)
    return (
        "-"
        if side.get(name) is None
        else f"{side[name]:.2f}" + (f" [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else "")
    )


def _measure(found: Mapping[str, Any] | None) -> str:
    return "-" if not found else f"{found['mean']:.3f} [{found['ci95'][0]:.3f}, {found['ci95'][1]:.3f}]"


def _returned(found: Mapping[str, Any] | None) -> str:
    return "-" if not found else f"{found['return']:.1f} [{found['ci95'][0]:.1f}, {found['ci95'][1]:.1f}]"


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else without_path(str(value))


def _image(path: Path, text: str, small: bool | None = None) -> str:
    if small is None:
        with Image.open(path) as image:
            small = max(image.size) < SMALL
    style = ' class="px"' if small else ""
    return f'<img{style} src="{data_uri(path)}" alt="{html.escape(text)}">'
