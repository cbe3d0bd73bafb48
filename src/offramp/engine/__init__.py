"""The engine: early exits that really skip work, on any machine."""

from offramp.engine.agreement import BF16, FLOAT32, Agreement, agreement
from offramp.engine.engine import Engine
from offramp.engine.form import PLAIN, Form, Program, usual_forms
from offramp.engine.plan import SIZES, Plan, Tally
from offramp.engine.rows import Answers
from offramp.engine.straight import Straight
from offramp.engine.tuning import Tuning

__all__ = [
    "BF16",
    "FLOAT32",
    "PLAIN",
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
    "usual_forms",
]
