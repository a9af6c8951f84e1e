"""From a concept to what training needs: forget prompts, retain prompts, anchors. `python -m reward.spec`
prints it."""

from reward.spec.automatic import make_spec
from reward.spec.concept import ConceptSpec, SpecError
from reward.spec.files import read_prompts, read_spec, spec_to_yaml

__all__ = ["ConceptSpec", "SpecError", "make_spec", "read_prompts", "read_spec", "spec_to_yaml"]
