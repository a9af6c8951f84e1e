"""Class-wise forgetting on photographs: a small Stable Diffusion pipeline trained on CIFAR-10, its CLIP
teacher and its judge."""
