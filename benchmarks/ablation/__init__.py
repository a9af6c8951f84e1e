"""Which part of the objective does what: every variant at its own best learning rate, on the same budget
of images."""
