"""Publishing: adapter files that any diffusers user can load, their cards, the Hub and Spaces."""
