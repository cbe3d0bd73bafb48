"""Runs a script as one of torchrun's processes: the fixture `together` hands in `given`."""

import os
import runpy
import sys
from pathlib import Path

environment, arguments = globals()["given"]
os.environ |= environment
sys.argv = arguments
sys.path.insert(0, str(Path(arguments[0]).parent))
runpy.run_path(arguments[0], run_name="__main__")
