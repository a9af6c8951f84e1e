"""From a concept to what training needs: forget prompts, retain prompts, anchors. `python -m reward.concept`
prints it."""

from reward.concept.automatic import in_its_place, make_spec
from reward.concept.files import read_prompts, read_spec, spec_to_yaml
from reward.concept.spec import ConceptSpec, SpecError

__all__ = [
    "ConceptSpec",
    "SpecError",
    "in_its_place",
    "make_spec",
    "read_prompts",
    "read_spec",
    "spec_to_yaml",
]
