"""Reports: a run measured and shown, runs side by side."""

from offramp.reports.certify import Certified, certify
from offramp.reports.compare import Comparison, compare
from offramp.reports.evaluate import evaluate
from offramp.reports.evaluation import Evaluation

__all__ = ["Certified", "Comparison", "Evaluation", "certify", "compare", "evaluate"]
