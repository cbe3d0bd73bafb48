"""The engine: early exits that really skip work, on any machine."""

from offramp.runtime.agreement import BF16, FLOAT32, INT8, Agreement, agreement
from offramp.runtime.backends import calibrate, usual_forms
from offramp.runtime.engine import Engine
from offramp.runtime.plan import SIZES, Plan, Tally
from offramp.runtime.program import Form, Program
from offramp.runtime.rows import Answers
from offramp.runtime.straight import Straight
from offramp.runtime.tuning import Tuning

__all__ = [
    "BF16",
    "FLOAT32",
    "INT8",
    "SIZES",
    "Agreement",
    "Answers",
    "Engine",
    "Form",
    "Plan",
    "Program",
    "Straight",
    "Tally",
    "Tuning",
    "agreement",
    "calibrate",
    "usual_forms",
]
