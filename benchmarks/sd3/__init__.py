"""Erasures from a small Stable Diffusion 3 that draws the canvas."""
