"""Worlds to erase concepts from: each builds a base, a teacher, a judge and a reward predictor."""
