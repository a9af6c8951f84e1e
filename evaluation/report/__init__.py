"""One HTML file about a run, with everything in it."""
