from offramp.export import Stages
from offramp.reports.export import Exported, export


def test_what_is_written_is_said_and_lies_in_the_runs_folder(make_run, capsys):
    run = make_run()
    assert export(run, to="torch") == Exported(run / "export" / "torch", None)
    assert Stages.load(run / "export" / "torch").num_exits == 3
    assert capsys.readouterr() == ("", "")
