"""Files named as images that are none, or that would fill the memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
from hostile import images
from offramp.data.inputs import decode

LIMITED = """
import json, resource, sys
from pathlib import Path
sys.path.append(sys.argv[1])
from hostile import images
images.decode(images.CONTROLS["PNG"](Path(sys.argv[2])))  # what is loaded when it is needed is loaded now
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
failures = {}
for number, (name, make) in enumerate(images.CASES.items()):
    folder = Path(sys.argv[2], str(number))
    folder.mkdir()
    failures[name] = images.failure(make, folder)
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"failures": failures, "megabytes": used / 1024}))
"""


def test_every_hostile_image_is_refused_at_once_and_in_little_memory(tmp_path: Path) -> None:
    """A PNG file of 48 kB took 7.5 GB, a FIFO took for ever."""
    command = [sys.executable, "-c", LIMITED, str(Path(__file__).parents[1]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: failure for name, failure in found["failures"].items() if failure} == {}
    assert found["megabytes"] < 200


@pytest.mark.parametrize("make", images.CONTROLS.values(), ids=images.CONTROLS.keys())
def test_harmless_images_of_the_same_makes_are_read(make: images.Make, tmp_path: Path) -> None:
    assert images.failure(make, tmp_path).startswith("read, (3, ")


def test_a_larger_image_is_read_where_more_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(images.png_bomb(2000))
    assert decode(tmp_path / "large.png", max_megapixels=4).shape == (3, 2000, 2000)
    with pytest.raises(images.OfframpError, match=r"large\.png has 2000 times 2000 pixels, more than 3\.9 million"):
        decode(tmp_path / "large.png", max_megapixels=3.9)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    good = images.CONTROLS["JPEG"](tmp_path)
    decode(good)
    before = len(os.listdir("/dev/fd"))
    for make in (images.fifo, images.directory, images.sparse):
        images.failure(make, tmp_path)
    decode(good)
    assert len(os.listdir("/dev/fd")) == before
