"""Larger caches for kernels, of whoever imports this before torch: they are read when torch is loaded.

oneDNN keeps 1,024 primitives, a network like MSDNet-7 needs 600 for a training step: variants that take turns would
throw out each other's.
"""

import os

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
os.environ.setdefault("LRU_CACHE_CAPACITY", "16384")
