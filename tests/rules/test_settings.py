"""Settings outside their range are one line that names the setting and the value, before anything is trained."""

import pytest

from offramp.config import Spec
from offramp.errors import UsageError
from offramp.rules import RULES, build

WRONG = [
    "cagrad c=-1",
    "cagrad c=half",
    "cagrad rescale=no",
    "cgt gate=firm",
    "cgt threshold=90",
    "cgt leak=0",
    "cgt total=exit",
    "dfs ratio=1.5",
    "dfs ratio=half",
    "dfs head=al",
    "dfs dropout=1",
    "one-for-all teacher=t share=2",
    "one-for-all teacher=t temperature=0",
    "one-for-all teacher=t reduction=output",
    "meta-gf auxiliary=-1",
    "meta-gf eta_lr=fast",
    "meta-gf kept=1.1",
    "wpn epsilon=-1",
    "wpn centre=column",
    "wpn inputs=conf",
    "wpn p=0",
    "wpn hidden=0",
    "wpn interval=half",
    *(f"{name} beta=0.5" for name in RULES),
]


@pytest.mark.parametrize("words", WRONG)
def test_settings_out_of_range(words: str) -> None:
    key, _, value = words.split()[-1].partition("=")
    with pytest.raises(UsageError) as error:
        build(Spec.parse(words.split()))
    message = str(error.value)
    assert key in message
    assert value in message or key == "beta"


def test_a_teacher_is_required() -> None:
    with pytest.raises(UsageError, match="teacher"):
        build(Spec("one-for-all"))
