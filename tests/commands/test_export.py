from offramp.commands import ExportOptions
from offramp.commands.export import Exported, export
from offramp.export import Stages


def test_what_is_written_is_said_and_lies_in_the_runs_folder(make_run, capsys):
    run = make_run()
    assert export(ExportOptions(run, to="torch")) == Exported(run / "export" / "torch", None)
    assert Stages.load(run / "export" / "torch").num_exits == 3
    assert capsys.readouterr() == ("", "")
