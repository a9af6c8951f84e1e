"""What only a GPU can show, measured in two calls of a few minutes."""
