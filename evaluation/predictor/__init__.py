"""How good a reward predictor is: `python -m evaluation.predictor`."""
