"""What the policy is rewarded for: the concept's absence, scored on finished images and on noisy latents."""
