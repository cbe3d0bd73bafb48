import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from offramp import data
from offramp.data import Batch, Parts, Split
from offramp.data.cifar import LOOK10, LOOK100, unpickle
from offramp.errors import OfframpError, UsageError


def contents(split: Split) -> dict[int, tuple[int, torch.Tensor]]:
    """Class and pixels (uint8) of each image by its position, out of the batches."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (split.look.mean, split.look.std))  # type: ignore[attr-defined]
    return {
        int(index): (int(target), ((image * std + mean) * 255).round().to(torch.uint8))
        for batch in split.plain().batches()
        for image, target, index in zip(batch.images_BCHW, batch.targets_B, batch.indices_B, strict=True)
    }


def pixels(first: int) -> torch.Tensor:
    planes = [torch.full((32, 32), (first + 50 * channel) % 256) for channel in range(3)]
    return torch.stack(planes).to(torch.uint8)


def check(parts: Parts) -> None:
    train = contents(parts.train) | contents(parts.val.search) | contents(parts.val.certify)
    test = contents(parts.test)
    assert sorted(train) == list(range(40))
    assert all(target == (7 * i + 3) % 10 and torch.equal(image, pixels(i)) for i, (target, image) in train.items())
    assert sorted(test) == list(range(10))
    assert all(target == i and torch.equal(image, pixels(100 + i)) for i, (target, image) in test.items())
    assert parts.train.class_names == tuple(f"class {i}" for i in range(10))
    assert parts.train.image_shape == (3, 32, 32)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("packed", [True, False])
def test_images_labels_and_names_are_read(name: str, packed: bool, request: Any, tmp_path: Path) -> None:
    small = request.getfixturevalue(f"small_{name}")
    small.write(tmp_path, packed)
    parts = getattr(data, name)(tmp_path, batch_size=16, holdout=10)
    assert [len(split) for split in parts.splits()] == [30, 5, 5, 10]
    check(parts)
    # Runs know their images by it: it may never change.
    assert parts.train.fingerprint() == "a9e0acb3b8598a222448f294842bc2e7a5ef14c2ac610e20677ab2af03c34d64"


def test_statistics_and_augmentation_are_the_papers_peers(
    small_cifar10: Any, small_cifar100: Any, tmp_path: Path
) -> None:
    small_cifar10.write(tmp_path)
    small_cifar100.write(tmp_path)
    ten, hundred = data.cifar10(tmp_path).train, data.cifar100(tmp_path).train
    assert ten.look is LOOK10  # type: ignore[attr-defined]
    assert hundred.look is LOOK100  # type: ignore[attr-defined]
    assert LOOK10.mean == (0.4914, 0.4824, 0.4467)
    assert LOOK10.std == (0.2471, 0.2435, 0.2616)
    assert LOOK100.mean == (0.5071, 0.4867, 0.4408)
    assert LOOK100.std == (0.2675, 0.2565, 0.2761)
    assert (LOOK10.padding, LOOK10.flip, LOOK100.padding, LOOK100.flip) == (4, True, 4, True)


def test_the_configuration_builds_the_same_again(
    small_cifar100: Any, tmp_path: Path, same: Callable[[list[Batch], list[Batch]], bool]
) -> None:
    small_cifar100.write(tmp_path)
    parts = data.cifar100(tmp_path, batch_size=16, holdout=10, split_seed=2, limit=30)
    config = parts.train.config
    assert config is not None
    again = data.load(config)
    assert config.source.args == {"split_seed": 2, "limit": 30}
    assert again.description() == parts.description()
    assert same(list(again.train.batches(seed=1)), list(parts.train.batches(seed=1)))


def test_the_usual_holdout_is_a_tenth_of_a_small_set(small_cifar100: Any, tmp_path: Path) -> None:
    small_cifar100.write(tmp_path)
    assert len(data.cifar100(tmp_path).val) == 4
    with pytest.raises(UsageError, match="holdout=5000 leaves nothing to train on: there are 40"):
        data.cifar100(tmp_path, holdout=5000)


def test_damage_is_found(small_cifar100: Any, tmp_path: Path) -> None:
    path = small_cifar100.write(tmp_path)
    path.write_bytes(small_cifar100.packed[:-10])
    with pytest.raises(OfframpError, match=r"cifar-100-python.tar.gz is damaged, not fully downloaded") as caught:
        data.cifar100(tmp_path)
    assert "Delete it and fetch https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz" in str(caught.value)


def test_the_other_cifar_is_refused(small_cifar10: Any, small_cifar100: Any, tmp_path: Path) -> None:
    small_cifar10.write(tmp_path).rename(tmp_path / small_cifar100.published.filename)
    with pytest.raises(OfframpError, match="or another file"):
        data.cifar100(tmp_path)


def test_a_flipped_bit_in_an_unpacked_file_is_found(small_cifar10: Any, tmp_path: Path) -> None:
    path = small_cifar10.write(tmp_path, packed=False) / "data_batch_3"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(OfframpError, match=r"data_batch_3 is damaged.*unpack cifar-10-python\.tar\.gz again"):
        data.cifar10(tmp_path)


def test_a_missing_unpacked_file_is_named(small_cifar10: Any, tmp_path: Path) -> None:
    (small_cifar10.write(tmp_path, packed=False) / "batches.meta").unlink()
    with pytest.raises(OfframpError, match=r"batches\.meta is missing\. Delete .*cifar-10-batches-py and unpack"):
        data.cifar10(tmp_path)


@pytest.mark.usefixtures("no_network")
def test_a_missing_archive_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OfframpError) as caught:
        data.cifar100(tmp_path)
    assert "cifar-100-python.tar.gz is not in" in str(caught.value)
    assert "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_downloaded_archive_is_used(small_cifar10: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def serve(url: str, folder: Path, name: str, md5: str) -> None:
        asked.append((url, md5))
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(small_cifar10.packed)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", serve)
    check(data.cifar10(tmp_path / "new", batch_size=16, holdout=10))
    assert asked == [("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", small_cifar10.published.tgz_md5)]


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("packed", [True, False])
def test_a_hostile_file_is_not_unpickled_for_it_has_another_checksum(
    packed: bool, make_cifar: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = make_cifar("CIFAR10", data_batch_1=pickle.dumps(Malicious(), protocol=2))
    hostile.write(tmp_path, packed)
    monkeypatch.chdir(tmp_path)
    make_cifar("CIFAR10")
    with pytest.raises(OfframpError, match="or another file"):
        data.cifar10(tmp_path)
    monkeypatch.setattr("torchvision.datasets.CIFAR10", hostile.published)  # now it has the checksum that is expected
    with pytest.raises(OfframpError, match=r"asks for .*system, which is no data\. It is not read"):
        data.cifar10(tmp_path)
    assert not Path("hacked").exists()
    pickle.loads(hostile.files["data_batch_1"])  # the control: any other reader runs it
    assert Path("hacked").exists()


@pytest.mark.parametrize(
    "content",
    [
        b'cbuiltins\neval\n(S\'open("hacked", "w")\'\ntR.',
        b"cnumpy\nsave\n(S'hacked.npy'\nI1\ntR.",
        b"cnumpy\ndtype.__class__\n.",
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
    ],
)
def test_a_pickle_can_run_no_code(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OfframpError, match="It is not read"):
        unpickle(content)
    assert list(tmp_path.iterdir()) == []
