import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from offramp.errors import OfframpError, UsageError
from offramp.storage import (
    DamagedFileError,
    held_folder,
    kept_on_this_machine,
    load_tensors,
    save_tensors,
    tensor_hash,
    weights_hash,
    write_atomically,
)

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 2),
}


def test_tensors_come_back(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", TENSORS, {"b": "2", "a": "1"})
    tensors, metadata = load_tensors(tmp_path / "x.safetensors")
    assert metadata == {"a": "1", "b": "2"}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for number in range(2):
        metadata = {str(i): "x" for i in (range(20) if number else reversed(range(20)))}
        strided = (
            torch.arange(6.0).reshape(3, 2).t().contiguous().t().t() if number else torch.arange(6.0).reshape(3, 2).t()
        )
        save_tensors(tmp_path / f"{number}", {"a": strided}, metadata)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


@pytest.mark.parametrize("share", [i / 97 for i in range(97)])
def test_a_flipped_bit_is_found_anywhere(tmp_path: Path, share: float) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.randn(50)}, {"key": "value"})
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="damaged"):
        load_tensors(path)


def test_a_truncated_file_and_a_missing_one_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OfframpError, match="damaged or no safetensors file"):
        load_tensors(path)
    with pytest.raises(UsageError, match="There is no file"):
        load_tensors(tmp_path / "y")


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OfframpError, match="cannot be written: No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept/file")  # leads nowhere yet
    for content in (b"1", b"2"):
        write_atomically(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "kept" / "file").read_bytes() == content


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_honours_the_umask_and_one_that_is_there_keeps_its_permissions(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "plain", b"new")
        save_tensors(tmp_path / "tensors", TENSORS)
        (tmp_path / "plain").chmod(0o604)
        (tmp_path / "link").symlink_to(tmp_path / "plain")
        write_atomically(tmp_path / "link", b"newer")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "tensors").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o604
    assert (tmp_path / "plain").read_bytes() == b"newer"


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OfframpError, match="pipe cannot be written: it is no regular file"):
        write_atomically(tmp_path / "pipe", b"new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(OfframpError, match="cannot be written: Is a directory"):
        write_atomically(tmp_path, b"new")


def test_a_device_is_written_to_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", lambda old, new: pytest.fail(f"{new} is replaced"))
    (tmp_path / "null").symlink_to(os.devnull)
    write_atomically(tmp_path / "null", b"new")
    save_tensors(tmp_path / "null", TENSORS)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_what_a_killed_process_left_goes_and_what_a_living_one_makes_stays(tmp_path: Path) -> None:
    if (pid := os.fork()) == 0:
        with held_folder(tmp_path, "x") as folder:
            (folder / "new").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (left,) = tmp_path.iterdir()
    with held_folder(tmp_path, "x") as held, held_folder(tmp_path, "xy") as other:
        assert not left.exists()
        write_atomically(tmp_path / "x", b"new")
        assert held.is_dir()
        assert other.is_dir()
    assert {one.name for one in tmp_path.iterdir()} == {"x"}


def test_a_tensors_hash_depends_on_name_type_shape_and_values() -> None:
    hashes = {
        tensor_hash(torch.zeros(4)),
        tensor_hash(torch.zeros(4), "name"),
        tensor_hash(torch.zeros(2, 2)),
        tensor_hash(torch.zeros(4, dtype=torch.int32)),
        tensor_hash(torch.ones(4)),
    }
    assert len(hashes) == 5
    assert tensor_hash(torch.zeros(4)) in hashes


def test_weights_hash_is_the_same_for_a_network_and_its_file(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    save_tensors(tmp_path / "w", network.state_dict(), {"any": "metadata"})
    assert weights_hash(load_tensors(tmp_path / "w")[0]) == weights_hash(network.state_dict())
    renamed = {f"x.{name}": tensor for name, tensor in network.state_dict().items()}
    assert weights_hash(renamed) != weights_hash(network.state_dict())
    with torch.no_grad():
        network[0].bias += 1
    assert weights_hash(load_tensors(tmp_path / "w")[0]) != weights_hash(network.state_dict())


def test_a_user_without_a_home_is_told_where_files_can_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UsageError, match="Set XDG_CACHE_HOME"):
        kept_on_this_machine("kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept_on_this_machine("kernels") == tmp_path / "offramp" / "kernels"


@pytest.mark.parametrize(
    "metadata",
    [
        "[]",
        "1",
        "NaN",
        "null",
        "[" * 100_000,
        '{"a":' * 900 + "1" + "}" * 900,
        "{",
        '{"metadata": []}',
        '{"metadata": {"a": 1}}',
    ],
)
def test_metadata_of_any_other_form_are_a_damaged_file(metadata: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, path, {"offramp": metadata})
    with pytest.raises(DamagedFileError, match=r"w\.safetensors is damaged"):
        load_tensors(path)


def test_a_full_disk_is_named_once(tmp_path: Path) -> None:
    """By a limit on the size of files, which the system reports as it does a full disk: while bytes are written."""
    program = (
        "import resource, signal, sys, torch\nfrom pathlib import Path\nfrom offramp.storage import save_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    save_tensors(Path(sys.argv[1]), {'a': torch.ones(9999)})\nexcept Exception as error:\n"
        "    print(error)"
    )
    path = str(tmp_path / "w.safetensors")
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path} cannot be written: File too large.\n"
    assert list(tmp_path.iterdir()) == []
