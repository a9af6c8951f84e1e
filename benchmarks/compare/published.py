"""What others have measured on UnlearnCanvas itself (arXiv 2402.11846): another base, other judges, other
images than ours."""

from __future__ import annotations

from benchmarks.report import markdown

SOURCE = "https://huggingface.co/spaces/OPTML-Group/UnlearnCanvas-Benchmark/raw/main/assets/uc_result.csv"
COLUMNS = (
    "style UA",
    "style IRA",
    "style CRA",
    "object UA",
    "object IRA",
    "object CRA",
    "FID",
    "seconds",
    "memory, GB",
    "storage, GB",
)
PUBLISHED: dict[str, tuple[float, ...]] = {
    "ESD": (98.58, 80.97, 93.96, 92.15, 55.78, 44.23, 65.55, 6163, 17.8, 4.3),
    "FMN": (88.48, 56.77, 46.60, 45.64, 90.63, 73.46, 131.37, 350, 17.9, 4.2),
    "UCE": (98.40, 60.22, 47.71, 94.31, 39.35, 34.67, 182.01, 434, 5.1, 1.7),
    "CA": (60.82, 96.01, 92.70, 46.67, 90.11, 81.97, 54.21, 734, 10.1, 4.2),
    "SalUn": (86.26, 90.39, 95.08, 86.91, 96.35, 99.59, 61.05, 667, 30.8, 4.0),
}
"""The leaderboard of the benchmark's authors; only what it holds."""


def table() -> str:
    """Markdown, with its source."""
    rows = [
        [method, *(f"{value:.2f}" for value in row[:7]), *(f"{value:g}" for value in row[7:])]
        for method, row in PUBLISHED.items()
    ]
    source = (
        "Percent, but for FID and costs; each method on 50 styles and 20 objects, as the benchmark's authors "
        f"report it: {SOURCE}"
    )
    return f"{markdown(['method', *COLUMNS], rows)}\n\n{source}"
