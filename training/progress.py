"""What a run has counted and decided so far."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Counters and decisions."""

    iteration: int = 0
    images: int = 0
    unet_samples: int = 0
    seconds: float = 0.0
    peak_memory_mb: float | None = None
    brakes: int = 0
    replaced: list[float] = field(default_factory=list)
    retain_kl: float = 0.0
    step_kl: float = 0.0
    kl_coef: float = 0.0
    first_ratio_deviation: float | None = None
    stopped_by: str = ""
