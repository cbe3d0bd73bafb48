"""Commands as functions of their options: `evaluate(EvaluateOptions("runs/photos"))`. Importing this loads no torch.

What a run that was fit from Python with things made by hand cannot bring back is handed over: `parts` are its data
(splits, torch data sets or loaders), `into` is a network of the same make. `policy` and `measure` may be given in place
of a file or a name. Logits are kept in the run's `records/` and used again as long as weights and images are the same.

All raise `UsageError` where there is no run, it is not finished, or data or policy are not its own.
"""

from offramp.commands.audit import AuditOptions, audit
from offramp.commands.bench import BenchOptions, bench
from offramp.commands.certify import CertifyOptions, certify, certify_ladder
from offramp.commands.compare import CompareOptions, compare
from offramp.commands.demo import DemoOptions, demo
from offramp.commands.evaluate import EvaluateOptions, evaluate
from offramp.commands.export import ExportOptions, export
from offramp.commands.policy import PolicyOptions, find_policy
from offramp.commands.predict import PredictOptions, predict
from offramp.commands.serve import ServeOptions, serve
from offramp.commands.verdict import VerdictOptions, verdict
from offramp.commands.xray import XrayOptions, xray
from offramp.show.watch import Watch

__all__ = [
    "AuditOptions",
    "BenchOptions",
    "CertifyOptions",
    "CompareOptions",
    "DemoOptions",
    "EvaluateOptions",
    "ExportOptions",
    "PolicyOptions",
    "PredictOptions",
    "ServeOptions",
    "VerdictOptions",
    "Watch",
    "XrayOptions",
    "audit",
    "bench",
    "certify",
    "certify_ladder",
    "compare",
    "demo",
    "evaluate",
    "export",
    "find_policy",
    "predict",
    "serve",
    "verdict",
    "xray",
]
