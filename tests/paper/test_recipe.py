"""`offramp train` says where a run is not the paper's."""

import pytest

from offramp.commands.train import PAPERS_DATA
from offramp.config import DataConfig, Run, Spec
from offramp.paper import experiments
from offramp.paper.recipe import unlike_the_papers
from offramp.paper.scales import PAPER


@pytest.mark.parametrize(
    ("data", "objective", "holdout", "said"),
    [
        ("cifar10", "power-sqrt", 0, "λ 0.075, not 0.005"),  # the default is that of CIFAR-100
        ("cifar10", "dynamic", 0, "λ 0.075, not 0.005"),
        ("imagenet", "dynamic", None, "λ 0.01, not 0.005; α 0.3, not 0.8; holdout 0, not 50000"),
        ("imagenet", "dynamic form=damping strength=0.01 alpha=0.3", 0, None),
        ("cifar100", "dynamic", 0, None),
        ("cifar100", "dynamic", None, "holdout 0, not 5000"),
        ("cifar100", "cross-entropy", 100, "holdout 0, not 100"),
        ("cifar100", "damping strength=[0.1,0.2]", 0, "λ 0.005, not (0.1, 0.2)"),
        ("digits", "power-sqrt strength=0.3", None, None),  # not the paper's data
    ],
)
def test_lambda_alpha_and_holdout_of_the_data(data: str, objective: str, holdout: int | None, said: str | None) -> None:
    run = Run(data=DataConfig(source=Spec(data), holdout=holdout), objective=Spec.parse(objective.split()))
    expected = said and f"The paper's tables on {data} have {said}."
    assert unlike_the_papers(run) == expected


@pytest.mark.parametrize("table", ["table1", "table2", "table4", "table6"])
def test_of_the_papers_rows_nothing_is_said(table: str) -> None:
    (experiment,) = experiments([table], PAPER)
    assert [unlike_the_papers(row.run) for row in experiment.rows if row.in_paper] == [None] * len(
        [row for row in experiment.rows if row.in_paper]
    )


def test_the_line_is_asked_for_of_all_data_of_the_paper() -> None:
    assert set(PAPERS_DATA) == {setting.data.name for setting in PAPER.settings.values()}
