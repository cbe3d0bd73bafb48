"""What is wanted, what is there, what is missing."""

import dataclasses
import json
from pathlib import Path

import pytest

from offramp.config import Spec
from offramp.errors import UsageError
from offramp.reproduce.page import write
from offramp.reproduce.scales import POCKET
from offramp.reproduce.study import Study
from offramp.reproduce.work import work


def test_what_is_done_is_not_done_again(rows, tiny, tmp_path: Path) -> None:
    study = Study(names=("table1",), scale=tiny, seeds=(0,), out=tmp_path, only=("MSDNet", "Damping"))
    first, second = study.tasks(study.manifests())
    study.do([first], lambda tasks, finished: [finished(task, work(task.run, task.folder)) for task in tasks])
    assert [task.name for task in study.tasks(study.manifests())] == [second.name]


def test_manifests_from_elsewhere(study, tmp_path) -> None:
    """A study done on another machine: its manifests are all that is needed."""
    there = study(POCKET, "table8")
    elsewhere = tmp_path / "committed"
    (there.out / "manifests").rename(elsewhere)
    (elsewhere / "notes.json").write_text(json.dumps(["no manifest"]))
    here = dataclasses.replace(there, out=tmp_path / "here", known=(elsewhere,))
    assert here.tasks(here.manifests()) == []
    html, _ = write(here)
    assert 'href="../committed/' in html.read_text()
    with pytest.raises(UsageError, match=r"no folder .*nowhere"):
        dataclasses.replace(here, known=(tmp_path / "nowhere",)).manifests()


def test_a_new_method_in_every_table(study) -> None:
    made = study(POCKET, "table1", "figure3", also=(Spec("cgt", {"gate": "hard"}),), only=())
    table, figure = made.experiments
    assert [row.label for row in table.rows][-1] == "cgt gate='hard'"
    assert table.rows[-1].run.network == table.rows[0].run.network
    assert len(figure.rows) == 7  # whose rows are thresholds
    _, text = write(made)
    assert "| [cgt gate='hard'](" in text.read_text()


def test_only_some_rows(study) -> None:
    made = study(POCKET, "table1", "table2", only=("+ Dynamic", "Damping"))
    assert [[row.label for row in e.rows] for e in made.experiments] == [["Damping", "+ Dynamic"], ["+ Dynamic"]]
    with pytest.raises(UsageError, match=r"No row is called 'Dampin'. Did you mean Damping"):
        dataclasses.replace(made, only=("Dampin",))
