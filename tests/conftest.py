"""What all tests share stands in `shared.py`: a process that only hands tests out need not import all that."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tests.shared")
