"""Side-by-side runs and the tables made from them."""
