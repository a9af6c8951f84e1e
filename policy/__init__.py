"""Denoising as a Markov decision process, and the policy-gradient update of a LoRA adapter on the UNet."""
