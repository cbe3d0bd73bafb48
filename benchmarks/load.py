"""Open-loop load for benchmarks/serving.py, from a process of its own: images are sent when due, come what may.

    python benchmarks/load.py SOCKET --out FILE --images N [--bursts] --then RATE SECONDS [--then RATE SECONDS ...]

What is sent is the number of an image, over a Unix socket; what comes back is what became of it. Times are counted from
when an image was due, not from when it was sent, so that a generator or a server that falls behind hides nothing. With
`--bursts` groups of 1 to 31 images come together, as often as keeps the rate.
"""

import argparse
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ASKED = np.dtype([("number", "<u4"), ("image", "<u4")])
TOLD = np.dtype([("number", "<u4"), ("kind", "<u2"), ("exit", "<u2")])
ANSWERED, REFUSED, FAILED, LOST = range(4)
LARGEST = 31  # burst
PATIENCE = 10.0  # seconds after the last image is due


def arrivals(phases: list[list[float]], *, bursts: bool, seed: int) -> npt.NDArray[np.float64]:
    """When images are due, in seconds, over phases of (images a second, seconds)."""
    rng = np.random.default_rng(seed)
    due, begins = [], 0.0
    for rate, seconds in phases:
        mean = (1 + LARGEST) / 2 if bursts else 1.0
        gaps = rng.exponential(mean / rate, int(2 * seconds * rate / mean) + 50)
        groups = gaps.cumsum()
        groups = groups[groups < seconds]
        sizes = rng.integers(1, LARGEST, len(groups), endpoint=True) if bursts else np.ones(len(groups), dtype=int)
        due.append(begins + np.repeat(groups, sizes))
        begins += seconds
    return np.concatenate(due)


def offer(path: str, due: npt.NDArray[np.float64], images: int, seed: int) -> dict[str, Any]:
    """Send images when they are due, and note when and how each was answered."""
    asked = np.zeros(len(due), ASKED)
    asked["number"] = np.arange(len(due))
    asked["image"] = np.random.default_rng(seed + 1).integers(0, images, len(due))
    done, kind, exits = np.full(len(due), np.nan), np.full(len(due), LOST), np.zeros(len(due), dtype=int)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.connect(path)
        started = time.perf_counter() + 0.05

        def listen() -> None:
            left, rest = len(due), b""
            while left and (data := line.recv(2**16)):
                now = time.perf_counter() - started
                data = rest + data
                whole = len(data) // TOLD.itemsize * TOLD.itemsize
                told, rest = np.frombuffer(data[:whole], TOLD), data[whole:]
                done[told["number"]], kind[told["number"]], exits[told["number"]] = now, told["kind"], told["exit"]
                left -= len(told)

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        sent = 0
        while sent < len(due):
            now = time.perf_counter() - started
            until = int(due.searchsorted(now, side="right"))
            if until > sent:
                line.sendall(asked[sent:until].tobytes())
                sent = until
            else:
                time.sleep(max(due[sent] - now, 0.0))
        listener.join(PATIENCE)
        line.shutdown(socket.SHUT_RDWR)
        listener.join()
    return {"due": due, "done": done, "kind": kind, "exit": exits}


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("socket")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--bursts", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--then", type=float, nargs=2, action="append", required=True, metavar=("RATE", "SECONDS"))
    options = parser.parse_args()
    due = arrivals(options.then, bursts=options.bursts, seed=options.seed)
    np.savez(options.out, **offer(options.socket, due, options.images, options.seed))


if __name__ == "__main__":
    main()
