"""How many kernels oneDNN keeps: a setting that it reads when torch is loaded, so commands make it before that."""

import os
import sys

KEPT = 16384


def keep_kernels() -> None:
    """Let oneDNN keep 16,384 kernels, not its usual 1,024, unless the environment says how many.

    It makes one for every convolution and number of rows. An engine that meets many numbers of rows, or variants that
    take turns, would throw out what is soon needed again, and much of the time would go into making it anew.
    """
    if "torch" in sys.modules:
        return  # too late: the variables would say what is not so
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KEPT))
