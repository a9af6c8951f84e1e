"""For processes that begin with it: tiny tensors, for which more threads only wait for one another."""

import torch

torch.set_num_threads(1)
