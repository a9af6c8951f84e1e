"""What leaves the project: adapter files that any diffusers user can load, and the cards that describe
them."""
