"""Reports: a run measured and shown, runs side by side."""

from offramp.reports.bench import bench
from offramp.reports.bench_figures import Bench
from offramp.reports.certify import certify
from offramp.reports.compare import Comparison, compare
from offramp.reports.evaluate import evaluate
from offramp.reports.evaluation import Evaluation
from offramp.reports.policy import PolicyUse, find_policy
from offramp.reports.predict import Prediction, Predictions, predict
from offramp.reports.verdict import verdict
from offramp.reports.verdict_figures import Verdict
from offramp.reports.xray import XrayReport, xray

__all__ = [
    "Bench",
    "Comparison",
    "Evaluation",
    "PolicyUse",
    "Prediction",
    "Predictions",
    "Verdict",
    "XrayReport",
    "bench",
    "certify",
    "compare",
    "evaluate",
    "find_policy",
    "predict",
    "verdict",
    "xray",
]
