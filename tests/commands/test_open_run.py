import json
from pathlib import Path

import pytest

from offramp.commands import EvaluateOptions
from offramp.commands.open_run import OpenRun
from offramp.errors import UsageError


@pytest.mark.parametrize("where", ["config.json", "split.json"])
def test_what_is_refused_of_thresholds_is_what_evaluate_says_of_them(where, make_trained, parts, tiny) -> None:
    """`evaluate` looked at config.json alone, and drew thresholds of images that `certify` refused."""
    other = {"config.json": {"images": {"search": "0" * 64}}, "split.json": {"fingerprints": {"search": "0" * 64}}}
    run = Path(make_trained())
    values = json.loads((run / "config.json").read_text()) if where == "config.json" else {}
    (run / where).write_text(json.dumps({**values, **other[where]}))
    one = OpenRun(EvaluateOptions(str(run)), "evaluate", "figures are written there", parts, tiny)
    with pytest.raises(UsageError, match="not those that were held out") as caught:
        one.held_out("search", progress=None)
    assert one.no_thresholds() == str(caught.value)


def test_a_batch_of_no_images_is_refused_before_anything_is_recorded(make_trained, parts, tiny) -> None:
    run = Path(make_trained())
    one = OpenRun(EvaluateOptions(str(run), batch_size=0), "evaluate", "figures are written there", parts, tiny)
    with pytest.raises(UsageError, match="batch_size must be"):
        one.record(parts.test, "test", None)
    assert not one.folder.records.exists()
