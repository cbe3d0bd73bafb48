import pytest

from offramp.training.progress import Reporter

LINE = {"epoch": 2, "loss": 1.25, "search_top1": [50.0, 75.0], "train_top1": [90.0, 90.0]}


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(epochs=4, steps_per_epoch=2, done_steps=2) as reporter:
        reporter.note("[a note] as it is")
        reporter.after_step(64)
        reporter.after_step(64)
        reporter.after_epoch(LINE)
        reporter.after_epoch(LINE | {"search_top1": None})
    note, epoch, without = capsys.readouterr().err.splitlines()
    assert note == "[a note] as it is"
    assert epoch.startswith("epoch 2/4  loss 1.2500  search 50.0 75.0 (mean 62.50 %)")
    assert epoch.endswith("left")
    assert "train 90.0 90.0" in without
