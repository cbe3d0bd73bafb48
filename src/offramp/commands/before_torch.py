"""Settings that torch reads when it is loaded: the command line makes them before any command."""

import os
import sys

KEPT = 16384  # kernels of oneDNN
SETTINGS = {
    # oneDNN makes a kernel for every convolution and number of rows and keeps 1,024. An engine that meets many numbers
    # of rows, or variants that take turns, would throw out what is soon needed again and make it anew.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(KEPT),
    "LRU_CACHE_CAPACITY": str(KEPT),
    # Large tensors in huge pages (Linux): a step of training makes and frees some hundred megabytes, page by page.
    "THP_MEM_ALLOC_ENABLE": "1",
    # libgomp's threads turn 300,000 times while they wait for each other, some milliseconds: beside other work, which
    # keeps one of them waiting for a core, that was half of all time. On a quiet machine so many are as good.
    "GOMP_SPINCOUNT": "20000",
}


def before_torch() -> None:
    """Make the settings, but for those that the environment has already."""
    if "torch" not in sys.modules:  # else it is too late: the variables would say what is not so
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
