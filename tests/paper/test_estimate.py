import pytest

from offramp.paper import experiments
from offramp.paper.estimate import measured_rate, operations, trained_images, watched_images
from offramp.paper.scales import PAPER, POCKET


def by_label(name, scale):
    (experiment,) = experiments([name], scale)
    return {row.label: row for row in experiment.rows}


def test_operations_of_the_papers_run() -> None:
    """137.3 M operations an image (Table 1), 50,000 images, 300 epochs."""
    rows = by_label("table1", PAPER)
    assert operations(rows["MSDNet"]) == pytest.approx(137.3e6 * 50_000 * 300, rel=1e-3)
    assert operations(rows["WPN"]) == 3 * operations(rows["MSDNet"])


def test_images_held_out_and_watched() -> None:
    paper, pocket = (by_label("figure4", scale)["cross-entropy"] for scale in (PAPER, POCKET))
    assert (trained_images(paper), watched_images(paper)) == (1_231_167, 25_000)
    assert (trained_images(pocket), watched_images(pocket)) == (2000, 1000)
    on_test = by_label("table3", POCKET)["MSDNet last only (last epoch)"]
    assert (trained_images(on_test), watched_images(on_test)) == (2000, 10_000)


def test_meta_gf_counts_its_passes() -> None:
    rows = by_label("league", POCKET)
    assert operations(rows["Meta-GF"]) == 8 * operations(rows["cross-entropy"])


def test_a_rate_is_measured(tiny) -> None:
    assert 1e4 < measured_rate(tiny["cifar100"], 1) < 1e13
