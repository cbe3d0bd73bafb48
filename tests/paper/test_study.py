"""What is wanted, what is there, what is missing."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from offramp.commands.job import work
from offramp.config import Spec
from offramp.errors import UsageError
from offramp.paper.identity import run_hash
from offramp.paper.jobs import mark
from offramp.paper.methods import Method
from offramp.paper.page import write
from offramp.paper.scales import POCKET
from offramp.paper.study import Study
from offramp.training import train


def test_what_is_done_is_not_done_again(rows, tiny, tmp_path: Path) -> None:
    study = Study(names=("table1",), scale=tiny, seeds=(0,), out=tmp_path, only=("MSDNet", "Damping"))
    first, second = study.tasks(study.manifests())
    study.do([first], lambda tasks, finished: [finished(task, work(task.run, task.folder)) for task in tasks])
    assert [task.name for task in study.tasks(study.manifests())] == [second.name]
    assert study.done(study.manifests()) == 1


def test_a_run_that_was_begun_goes_on_in_its_form(tiny, tmp_path: Path) -> None:
    """The form is none of what a run is: asked for in another, it is the same run, and is not begun anew."""
    study = Study(names=("table1",), scale=tiny, seeds=(0,), out=tmp_path, only=("MSDNet",), form="plain")
    (task,) = study.tasks({})
    train(task.run, task.folder)
    (later,) = dataclasses.replace(study, form="compiled").tasks({})
    assert (later.run.training.form, later.folder) == ("compiled", task.folder)
    made = work(later.run, later.folder)
    assert (made.file.made_by.form, made.file.hash) == ("plain", run_hash(task.run))
    assert "--form plain" in made.file.command


def test_runs_that_failed_are_tried_last(tiny, tmp_path: Path) -> None:
    study = Study(names=("table1",), scale=tiny, seeds=(0, 1), out=tmp_path)
    first, second, *others = study.tasks({})
    mark(first, failed=True)
    mark(second, failed=True)
    mark(second, failed=False)
    assert [task.name for task in study.tasks({})] == [task.name for task in (second, *others, first)]


def test_manifests_from_elsewhere(study, tmp_path) -> None:
    """A study done on another machine: its manifests are all that is needed."""
    there = study(POCKET, "table8")
    elsewhere = tmp_path / "committed"
    (there.out / "manifests").rename(elsewhere)
    (elsewhere / "notes.json").write_text(json.dumps(["no manifest"]))
    here = dataclasses.replace(there, out=tmp_path / "here", known=(elsewhere,))
    assert here.tasks(here.manifests()) == []
    html, _, *_ = write(here)
    assert 'href="../committed/' in html.read_text()
    with pytest.raises(UsageError, match=r"no folder .*nowhere"):
        dataclasses.replace(here, known=(tmp_path / "nowhere",)).manifests()


def test_a_new_method_in_every_table(study) -> None:
    made = study(POCKET, "table1", "figure3", also=(Spec("cgt", {"gate": "hard"}),), only=())
    table, figure = made.experiments
    assert [row.label for row in table.rows][-1] == "cgt gate='hard'"
    assert table.rows[-1].run.network == table.rows[0].run.network
    assert len(figure.rows) == 7  # whose rows are thresholds
    _, text, *_ = write(made)
    assert "| [cgt gate='hard'](" in text.read_text()


def test_a_method_with_the_label_of_another_is_told_apart(study, monkeypatch) -> None:
    """Figures are kept by label: two rows of one label would both show the figures of the second."""
    other = Method("damping", lambda setting: Spec("damping", {"strength": 0.4}))
    monkeypatch.setitem(sys.modules, "own_methods", SimpleNamespace(DAMPING=other))
    made = study(POCKET, "league", also=(Spec("own_methods:DAMPING"),), seeds=1)
    rows = {row.label: row for row in made.experiments[0].rows}
    assert rows["damping"].run.objective == Spec("damping", {"strength": 0.005})
    assert rows["damping (--also)"].run.objective == Spec("damping", {"strength": 0.4})
    _, text, *_ = write(made)
    lines = text.read_text().split("**Early exits.**")[0].splitlines()
    first, second = [line.split("|")[2] for line in lines if line.startswith("| [damping")][::2]
    assert first != second
    mine = Method("mine", lambda setting: Spec("damping", {"strength": 0.3}))
    others = [Method("mine", lambda setting, by=by: Spec("damping", {"strength": by})) for by in (0.1, 0.2)]
    with pytest.raises(UsageError, match=r"Two of the added methods are called 'mine', and differ\."):
        made.experiments[0].with_methods([mine, *others])


def test_a_method_that_is_there_already_is_one_row(study) -> None:
    made = study(POCKET, "table1", also=(Spec("damping", {"strength": 0.005}), Spec("cgt"), Spec("cgt")), seeds=1)
    labels = [row.label for row in made.experiments[0].rows]
    assert labels[:5] == ["MSDNet", "WPN", "Damping", "+ Power-sqrt", "+ Dynamic"]
    assert labels[8:] == ["cgt"]  # after those that stand beside the paper's
    chosen = dataclasses.replace(made, only=("damping strength=0.005",))  # by the name it was added with
    assert [row.label for row in chosen.experiments[0].rows] == ["Damping"]


def test_only_some_rows(study) -> None:
    made = study(POCKET, "table1", "table2", only=("+ Dynamic", "Damping"))
    assert [[row.label for row in e.rows] for e in made.experiments] == [["Damping", "+ Dynamic"], ["+ Dynamic"]]
    with pytest.raises(UsageError, match=r"No row is called 'Dampin'. Did you mean Damping"):
        dataclasses.replace(made, only=("Dampin",))
