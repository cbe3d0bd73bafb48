"""Open-loop load for benchmarks/serving.py, from a process of its own: images are sent when due, come what may.

    python benchmarks/load.py SOCKET --out FILE --images N [--bursts] --then RATE SECONDS [--then RATE SECONDS ...]
    python benchmarks/load.py HOST:PORT --bodies FILE [--connections 480] ...

What is sent is the number of an image, over a Unix socket; what comes back is what became of it. Or, with `--bodies`,
image files over HTTP, on connections that are kept; where all of them wait for an answer, what is due waits for one of
them. Times are counted from when an image was due, not from when it was sent, so that a generator or a server that
falls behind hides nothing. With `--bursts` groups of 1 to 31 images come together, as often as keeps the rate.
"""

import argparse
import contextlib
import json
import select
import socket
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

ASKED = np.dtype([("number", "<u4"), ("image", "<u4")])
TOLD = np.dtype([("number", "<u4"), ("kind", "<u2"), ("exit", "<u2")])
ANSWERED, REFUSED, FAILED, LOST, UNSENT = range(5)  # the last: this process fell behind
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


def asked_over_http(address: str, body: bytes) -> bytes:
    """A whole request."""
    lines = ["POST /v1/predict HTTP/1.1", f"host: {address}", "content-type: image/png", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def is_whole(data: bytes) -> bool:
    """Whether an answer has all of its bytes."""
    head, _, body = data.partition(b"\r\n\r\n")
    _, found, length = head.partition(b"content-length: ")
    return bool(found) and len(body) >= int(length.partition(b"\r")[0])


def offer_over_http(
    address: str, due: npt.NDArray[np.float64], bodies: list[bytes], seed: int, connections: int
) -> dict[str, Any]:
    """As `offer`. A connection that breaks is not used again, and what has no answer in the end stays so."""
    host, port = address.split(":")
    asked = [asked_over_http(address, body) for body in bodies]
    images = np.random.default_rng(seed + 1).integers(0, len(asked), len(due)).tolist()
    done, kind, exits = np.full(len(due), np.nan), np.full(len(due), LOST), np.zeros(len(due), dtype=int)
    lines, read, poll = dict[int, socket.socket](), dict[int, bytes](), select.epoll()

    def connect() -> int:
        line = socket.create_connection((host, int(port)))
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        place = line.fileno()
        lines[place], read[place] = line, b""
        poll.register(line, select.EPOLLIN)
        return place

    def send(place: int, number: int) -> None:
        under_way[place] = number
        with contextlib.suppress(ConnectionError):  # seen when its answer is read
            lines[place].sendall(asked[images[number]])

    free, under_way = deque(connect() for _ in range(connections)), dict[int, int]()
    when, sent = due.tolist(), 0
    answered = []  # read when all is over, so that this delays nothing
    started = time.perf_counter() + 0.05
    last = when[-1] + PATIENCE
    late = when[-1] + PATIENCE / 2  # nothing is sent any more, so that what was sent has its time to be answered
    while (sent < len(when) or under_way) and (now := time.perf_counter() - started) < last:
        if now > late and not under_way:
            break
        while sent < len(when) and when[sent] <= now <= late and free:
            send(free.popleft(), sent)  # on the one that has rested longest, so that none rests too long
            sent += 1
        wait = when[sent] - now if sent < len(when) and free and now <= late else 0.1
        for place, _ in poll.poll(max(wait, 0.0)):
            try:
                data = lines[place].recv(2**16)
            except ConnectionError:
                data = b""
            read[place] += data
            if data and not is_whole(read[place]):
                continue
            number = under_way.pop(place, None)
            if not data:
                poll.unregister(place)
                lines.pop(place).close()
                if number is None:
                    free.remove(place)
                elif not read[place]:  # closed because it rested, as a client has to expect
                    send(connect(), number)
                    continue
            if number is not None:
                done[number] = time.perf_counter() - started
                if (status := read[place][9:12]) != b"200" and data:  # most of them, where the server is full
                    kind[number] = REFUSED if status in (b"429", b"503") else FAILED
                else:
                    answered.append((number, read[place]))
            read[place] = b""
            if data:
                free.append(place)
    kind[sent:] = UNSENT
    for number, data in answered:
        if is_whole(data):
            kind[number], exits[number] = ANSWERED, json.loads(data.partition(b"\r\n\r\n")[2])["predictions"][0]["exit"]
        else:
            kind[number] = FAILED
    return {"due": due, "done": done, "kind": kind, "exit": exits}


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, help="how many there are, over a Unix socket")
    parser.add_argument("--bodies", type=Path, help="image files, as a list in msgpack: over HTTP")
    parser.add_argument("--connections", type=int, default=480, help="over HTTP")
    parser.add_argument("--bursts", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--then", type=float, nargs=2, action="append", required=True, metavar=("RATE", "SECONDS"))
    options = parser.parse_args()
    due = arrivals(options.then, bursts=options.bursts, seed=options.seed)
    if options.bodies is None:
        seen = offer(options.where, due, options.images, options.seed)
    else:
        bodies = msgspec.msgpack.decode(options.bodies.read_bytes(), type=list[bytes])
        seen = offer_over_http(options.where, due, bodies, options.seed, options.connections)
    np.savez(options.out, **seen)


if __name__ == "__main__":
    main()
