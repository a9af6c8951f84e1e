"""The environment of the decision process: base model, prompts and reward, put together from names on a
command line."""

import logging

# On a CPU bitsandbytes asks, at import, for a package that only its 4-bit layers would use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
