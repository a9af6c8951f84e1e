"""The bundled world: procedural styles x objects, and the small models trained on it.

Nothing outside this folder knows its styles, objects, sizes or prompts; other rooms only take the
directories below as defaults, the way they take any other path or Hub id.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
PIPELINE = WEIGHTS / "pipeline"
"""Stable Diffusion pipeline in the diffusers directory format."""
CLIP = WEIGHTS / "clip"
"""open_clip model (`local-dir:` format), the teacher of the reward."""
JUDGE = WEIGHTS / "judge"
"""Classifier with a style head and an object head, the source of reported metrics."""
REWARD = WEIGHTS / "reward"
"""Noise-conditioned reward predictor for the bundled pipeline's latents."""
