"""The base: which pipelines are supported, loading, encoding, quantizing and drawing with them."""

import logging

# On a CPU bitsandbytes asks, at import, for a package that only its 4-bit layers would use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

import pipelines.flow  # noqa: E402, F401  makes its backbones known
