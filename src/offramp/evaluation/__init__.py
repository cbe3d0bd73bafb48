"""Evaluation: `record` a network's logits on a data set once, then ask. Everything but `record` is arithmetic on it."""

from offramp.certificate import Certificate, Promise
from offramp.evaluation.anytime import Anytime, ExitFigures, anytime
from offramp.evaluation.audit import Audit, audit
from offramp.evaluation.budgeted import Curve, Point, budgeted, curve, geometric_policies
from offramp.evaluation.calibration import Reliability, reliability
from offramp.evaluation.certify import certify
from offramp.evaluation.damping import DampingFigures
from offramp.evaluation.ladder import certify_ladder
from offramp.evaluation.paired import Gain, gains
from offramp.evaluation.record import Record, record, recorded
from offramp.evaluation.search import search_thresholds
from offramp.evaluation.targets import policy_for
from offramp.evaluation.temperature import fit_temperatures
from offramp.ladder import Ladder
from offramp.storage import weights_hash

__all__ = [
    "Anytime",
    "Audit",
    "Certificate",
    "Curve",
    "DampingFigures",
    "ExitFigures",
    "Gain",
    "Ladder",
    "Point",
    "Promise",
    "Record",
    "Reliability",
    "anytime",
    "audit",
    "budgeted",
    "certify",
    "certify_ladder",
    "curve",
    "fit_temperatures",
    "gains",
    "geometric_policies",
    "policy_for",
    "record",
    "recorded",
    "reliability",
    "search_thresholds",
    "weights_hash",
]
