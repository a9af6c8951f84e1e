"""The sections of the page; each is empty if the run has nothing for it. All texts come from others, and
`Html.fill` escapes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.markup import Html
from common.names import without_path
from common.pictures import read_picture
from evaluation.pareto import with_intervals
from evaluation.report.page import table
from evaluation.report.run import Run, data_uri
from evaluation.report.svg import Bar, Point, bars, lines, pareto
from hub.card import DEFINED, GRID_NAME, METRICS, UNLOADABLE, suffered
from hub.results import interval, listed

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


def heading(run: Run) -> Html:
    """The concept, the base, and the headline metrics."""
    results = run.results or run.probes
    before, after = run.results.get("base") or {}, run.results.get("adapter") or {}
    tiles = Html.join(
        Html.fill(
            '<div><span class="soft">{name}</span><b id="{name}">{percent:.1f} %</b>'
            '<span class="soft">{range} base {base}</span></div>',
            name=name,
            percent=after[name],
            range=_range(after, name),
            base=_value(before, name),
        )
        for name in METRICS
        if after.get(name) is not None
    )
    return Html.fill(
        '<h1>Erased: {concept}</h1><p class="soft">From {base}. Judge: {judge}.{images} In brackets 95&nbsp;% '
        "intervals.</p>{tiles}",
        concept=", ".join(listed(results.get("concept"))) or "a concept",
        base=without_path(results.get("base_model_name_or_path") or "a pipeline"),
        judge=results.get("judge") or "nobody yet",
        images=f" {results['images_per_side']} images a side." if results.get("images_per_side") else "",
        tiles=Html.fill('<div class="big">{tiles}</div>', tiles=tiles) if tiles else "",
    )


def metrics(run: Run) -> Html:
    """Every metric of base and adapter, and its meaning."""
    before, after = run.results.get("base") or {}, run.results.get("adapter") or {}
    names = [name for name in (*DEFINED, "CRA_retained", "CRA_forgotten") if after.get(name) is not None]
    if not names:
        return Html()
    rows = [
        [name, _cell(before, name), _cell(after, name), str((after.get("images") or {}).get(name, ""))]
        for name in names
    ]
    for name, found in (after.get("measures") or {}).items():
        other = (before.get("measures") or {}).get(name)
        rows.append([name, _measure(other), _measure(found), ""])
    return Html.fill(
        "<h2>Metrics</h2>{found}<ul class='soft'>{meaning}</ul>",
        found=table(["percent", "base", "with the adapter", "images"], rows, 1),
        meaning=Html.join(
            Html.fill("<li><b>{name}</b>, {text}</li>", name=name, text=text)
            for name, text in DEFINED.items()
            if name in names
        ),
    )


def images(run: Run) -> Html:
    """Base and adapter from the same noise: the evaluation's images one by one, else the picture of them."""
    picture = run.picture(GRID_NAME)
    if run.shown:
        parts = [
            _shown(run, True, "To forget: prompts that ask for it"),
            _shown(run, False, "To keep: all other prompts"),
        ]
        return Html.fill(
            '<h2>Before and after</h2><p class="soft">Base above, adapter below, from the same noise; chosen '
            "without looking.</p>{parts}",
            parts=Html.join(parts),
        )
    if picture:
        text = "Images of the base above, with the adapter below, from the same noise"
        return Html.fill(
            "<h2>Before and after</h2><figure class='scroll'>{picture}</figure>",
            picture=_image(picture, text, False),
        )
    return Html()


def _shown(run: Run, forget: bool, name: str) -> Html:
    """The images that ask for the concept, or all others."""
    cells = Html.join(
        Html.fill(
            "<figure>{before}{after}<figcaption>{prompt} · seed {seed}</figcaption></figure>",
            before=_image(one.before, f"{one.prompt}, base"),
            after=_image(one.after, f"{one.prompt}, with the adapter"),
            prompt=one.prompt,
            seed=one.seed,
        )
        for one in run.shown
        if one.forget == forget
    )
    if not cells:
        return Html()
    return Html.fill(
        '<h3>{name}</h3><div class="grid{mark}">{cells}</div>',
        name=name,
        mark=" forget" if forget else "",
        cells=cells,
    )


def price(run: Run) -> Html:
    """UA against IRA and CRA, at several weights of the adapter."""
    sides = run.results.get("scales") or []
    if not sides:
        return Html()
    names = [name for name in ("IRA", "CRA") if any(side.get(name) is not None for side in sides)]
    charts = []
    for name in names:
        points = [
            ((side["UA"], side[name]), (side["ci95"]["UA"], side["ci95"][name]), f"{side['scale']:g}")
            for side in with_intervals(sides, name)
        ]
        if points:
            title = f"{name} against UA; numbers are weights"
            charts.append(pareto(title, points, "UA: the concept is gone (percent)"))
    rows = [[f"{side['scale']:g}", *(_cell(side, name) for name in ("UA", *names))] for side in sides]
    return Html.fill(
        '<h2>The price of forgetting</h2><div class="charts">{charts}</div>{table}',
        charts=Html.join(charts),
        table=table(["weight", "UA", *names], rows, 1),
    )


def damage(run: Run) -> Html:
    """What suffered most, and the accuracy on every class."""
    before, after = ((run.results.get(side) or {}).get("per_class") or {} for side in ("base", "adapter"))
    if not after:
        return Html()
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
    return Html.fill(
        "<h2>What suffered most</h2>{said}<details><summary>All classes</summary>{classes}</details>"
        '<p class="soft">Percent of images in which the judge sees the class that the prompt names.</p>',
        said=table(["kind", "retained", "base", "with the adapter", "change"], worst, 2)
        if worst
        else Html("<p>No retained class is recognised less often.</p>"),
        classes=table(["kind", "class", "base", "with the adapter"], every, 2),
    )


def probes(run: Run) -> Html:
    """How much of the concept each probe brought back, with images."""
    found = run.probes.get("probes") or {}
    rows = [row for probe in found.values() for row in probe["rows"]]
    if not rows:
        return Html()
    shown = [
        Bar(
            row["name"],
            row["adapter"]["return"],
            row["adapter"]["ci95"],
            (row.get("base") or {}).get("return"),
        )
        for row in rows
    ]
    cells = [
        [
            row["name"],
            _returned(row["adapter"]),
            _returned(row.get("base")),
            *(_spent(row, name) for name in ("images", "steps", "unet_samples", "seconds")),
        ]
        for row in rows
    ]
    pictures = Html.join(
        Html.fill(
            "<figure><div class='scroll'>{image}</div><figcaption><b>{name}</b>: {prompts}, …</figcaption></figure>",
            image=_image(path, row["name"], False),
            name=row["name"],
            prompts="; ".join((row.get("prompts") or [])[:2]),
        )
        for name, probe in found.items()
        for row, path in zip(probe["rows"], run.samples.get(name) or [], strict=False)
    )
    sides = ("with the adapter", "the same on the base")
    samples = Html.fill(
        "<details><summary>Images of every attempt: base above, adapter below</summary>{pictures}</details>",
        pictures=pictures,
    )
    return Html.fill(
        "<h2>How much comes back</h2><p>How often the judge ({judge}) sees the concept again. The hollow dot is "
        "the same attempt on the base without the adapter, the most it could find; plain prompts are no "
        "attempt.</p><div class='scroll'>{bars}</div>{table}{samples}",
        judge=run.probes.get("judge") or "unknown",
        bars=bars("The concept is seen, percent", shown, sides),
        table=table(["attempt", *sides, "images", "steps", "UNet samples", "seconds"], cells, 1),
        samples=samples if pictures else "",
    )


def training(run: Run) -> Html:
    """Curves over the iterations, and over the timesteps at the first, the middle and the last of them."""
    if not run.diagnostics:
        return Html()
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
    by_timestep = Html.fill(
        '<h3>By timestep</h3><p class="soft">Noise is at the right.</p><div class="charts">{panels}</div>',
        panels=Html.join(panels),
    )
    return Html.fill(
        '<h2>Training</h2><div class="charts">{charts}</div>{by_timestep}',
        charts=Html.join(charts),
        by_timestep=by_timestep if panels else "",
    )


def cost(run: Run) -> Html:
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
    return Html.fill("<h2>Cost</h2>{table}", table=table(["", ""], rows)) if rows else Html()


def settings(run: Run) -> Html:
    """Every flag of training, of the evaluation and of the probes."""
    given = {
        f"--{name}": value
        for name, value in (run.results.get("settings") or {}).items()
        if "token" not in name or name == "attack_tokens"
    }
    tried = {f"probes: {name}": value for name, value in (run.probes.get("settings") or {}).items()}
    rows = [[name, _plain(value)] for name, value in (given | tried).items() if value not in (None, "", [])]
    prompts = listed(run.results.get("forget_prompts"))
    if not rows and not prompts:
        return Html()
    asking = Html.fill(
        "<details><summary>Prompts that ask for the concept ({count})</summary><ul>{prompts}</ul></details>",
        count=len(prompts),
        prompts=_items(prompts),
    )
    flags = Html.fill(
        "<details><summary>{count} settings</summary>{table}</details>",
        count=len(rows),
        table=table(["", ""], rows),
    )
    return Html.fill(
        "<h2>Settings</h2>{asking}{flags}", asking=asking if prompts else "", flags=flags if rows else ""
    )


def provenance(run: Run) -> Html:
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
    if (results.get("judge") or "").startswith("teacher"):
        limits.append(
            "The metrics come from the CLIP model that was also the reward. They are not independent and flatter "
            "the adapter."
        )
    return Html.fill(
        "<h2>Provenance and limits</h2>{table}<ul>{limits}</ul>",
        table=table(["", ""], rows),
        limits=_items(limits),
    )


SECTIONS = (heading, metrics, images, price, damage, probes, training, cost, settings, provenance)


def _items(texts: Sequence[str]) -> Html:
    return Html.join(Html.fill("<li>{text}</li>", text=text) for text in texts)


def _curve(run: Run, name: str) -> list[Point]:
    return [
        (float(line["iteration"]), float(line[name]))
        for line in run.diagnostics
        if line.get(name) is not None
    ]


def _value(side: Mapping[str, Any], name: str) -> str:
    return "-" if side.get(name) is None else f"{side[name]:.1f}"


def _range(side: Mapping[str, Any], name: str) -> Html:
    bounds = interval(side, name)
    if not bounds:
        return Html()
    return Html.fill('<span class="n">[{low:.1f}, {high:.1f}]</span> ·', low=bounds[0], high=bounds[1])


def _cell(side: Mapping[str, Any], name: str) -> str:
    bounds = interval(side, name)
    return (
        "-"
        if side.get(name) is None
        else f"{side[name]:.2f}" + (f" [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else "")
    )


def _measure(found: Mapping[str, Any] | None) -> str:
    return "-" if not found else f"{found['mean']:.3f} [{found['ci95'][0]:.3f}, {found['ci95'][1]:.3f}]"


def _returned(found: Mapping[str, Any] | None) -> str:
    return "-" if not found else f"{found['return']:.1f} [{found['ci95'][0]:.1f}, {found['ci95'][1]:.1f}]"


def _spent(row: Mapping[str, Any], name: str) -> str:
    spent = (row.get("budget") or {}).get(name)
    return "-" if spent is None else f"{spent:g}"


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else without_path(str(value))


def _image(path: Path, text: str, small: bool | None = None) -> Html:
    if small is None:
        small = max(read_picture(path).size) < SMALL
    style = Html(' class="px"' if small else "")
    return Html.fill('<img{style} src="{uri}" alt="{text}">', style=style, uri=data_uri(path), text=text)
