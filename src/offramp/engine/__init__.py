"""The engine: early exits that really skip work, on any machine."""

from offramp.engine.agreement import BF16, FLOAT32, Agreement, agreement
from offramp.engine.engine import Engine, Straight
from offramp.engine.form import PLAIN, Form, Program
from offramp.engine.plan import SIZES, Plan, Tally
from offramp.engine.rows import Answers

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
    "agreement",
]
