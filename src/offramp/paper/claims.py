"""What the paper claims, as data: the words, where they stand, and the statements that must hold for them.

A claim marked `table` is read off the paper's numbers, one marked `prose` is what it says in words. Where both speak,
the words decide and the page shows beside them what the paper's own numbers give.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from offramp.paper.cost_predicates import Costs, Faster
from offramp.paper.experiments import LAMBDAS, THRESHOLDS
from offramp.paper.predicates import (
    Against,
    AtEveryExit,
    Deeper,
    Greater,
    LargerGain,
    Mixed,
    NoMore,
    Ordered,
    Over,
    Predicate,
    Q,
    Steadier,
    Summed,
)
from offramp.paper.results import What


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        source: Whether it is read off a table or said in words.
        parts: What must hold, all of it.
        other_data: Whether it is about several data sets, which only the paper's scale has.
    """

    text: str
    source: Literal["prose", "table"]
    where: str
    parts: tuple[Predicate, ...]
    other_data: bool = False


def _prose(text: str, where: str, *parts: Predicate, other_data: bool = False) -> Claim:
    return Claim(text, "prose", where, parts, other_data)


def _table(text: str, where: str, *parts: Predicate) -> Claim:
    return Claim(text, "table", where, parts)


LAST = (-1, None)  # of networks with one exit it is that


def _t1(row: str, what: What = "top1") -> Q:
    return Q("table1", row, what)


def _gain_early(table: str, row: str, base: str) -> LargerGain:
    """The gain over all exits but the last two, on average, exceeds that at the last two."""
    early, late = (None, -2), (-2, None)
    return LargerGain(
        Q(table, row, exits=early), Q(table, base, exits=early), Q(table, row, exits=late), Q(table, base, exits=late)
    )


def _lambdas(name: str, exits: tuple[int | None, int | None] = (None, None)) -> tuple[Q, ...]:
    return tuple(Q("table7", f"{name} {strength}", exits=exits) for strength in LAMBDAS)


def _table3(row: str) -> Q:
    return Q("table3", row, exits=LAST)


def _figure3(threshold: float, what: Literal["top1", "train-nll"] = "top1") -> Q:
    return Q("figure3", f"{threshold:.0%}".replace("%", " %"), what, LAST)


def _dynamic(table: str, base: str, row: str = "+ Dynamic training") -> tuple[Q, Q]:
    return Q(table, row), Q(table, base)


_WPNS = ("WPN", "WPN, its own recipe", "WPN, twice the batch")


def _than_wpn(left: Q, behind: float = 0.0) -> Against:
    """The row over the best variant of WPN."""
    variants = (Greater(left, dataclasses.replace(left, row=row)) for row in _WPNS)
    return Against(tuple(variants), behind)


_T1_GAIN = (_t1("+ Dynamic"), _t1("MSDNet"))
_T2_GAIN = _dynamic("table2", "MSDNet", "+ Dynamic")
_DAMPING, _ROOT, _WITH = "Damping loss", "+ Power-sqrt", "Dynamic training with gradient"
_OURS = "Ours (Power-sqrt)"
_EARLY_STOPPING = _table3("MSDNet last only (best epoch)")

CLAIMS: tuple[Claim, ...] = (
    _prose(
        "Dynamic training is better than power-sqrt, and power-sqrt than plain training, on average over exits.",
        "section 4.1, Table 1",
        Greater(_t1("+ Dynamic"), _t1("+ Power-sqrt")),
        Greater(_t1("+ Power-sqrt"), _t1("MSDNet")),
    ),
    _prose(
        "Dynamic training gains accuracy at all exits, CIFAR-100 setting.", "abstract, Table 1", AtEveryExit(*_T1_GAIN)
    ),
    _prose(
        "Dynamic training gains accuracy at all exits, CIFAR-10 setting.",
        "abstract, Table 4",
        AtEveryExit(*_dynamic("table4", "MSDNet")),
    ),
    _prose(
        "Dynamic training gains accuracy at all exits, ImageNet setting.", "abstract, Table 2", AtEveryExit(*_T2_GAIN)
    ),
    _prose(
        "Power-sqrt and dynamic training gain at nearly all exits (all but one here).",
        "section 4.1, Table 1",
        AtEveryExit(_t1("+ Power-sqrt"), _t1("MSDNet"), 1),
        AtEveryExit(*_T1_GAIN, 1),
    ),
    _table(
        "Dynamic training gains less at the last two exits than at the others.",
        "Table 1",
        _gain_early("table1", "+ Dynamic", "MSDNet"),
    ),
    _prose(
        "Power-sqrt and dynamic training are better than meta-learning (WPN).",
        "section 4.1, Table 1",
        _than_wpn(_t1("+ Power-sqrt")),
        _than_wpn(_t1("+ Dynamic")),
    ),
    _prose(
        "Power-sqrt and dynamic training are better than plain training, ImageNet setting.",
        "section 4.1, Table 2",
        Greater(Q("table2", "Power-sqrt"), Q("table2", "MSDNet")),
        Greater(*_T2_GAIN),
    ),
    _table(
        "Summed over exits, dynamic training gains more than DFS, ImageNet setting.",
        "Table 2, whose DFS row is another recipe's",
        Against(tuple(Summed(_T2_GAIN[0], Q("table2", row)) for row in ("DFS", "DFS, its own recipe"))),
    ),
    _prose(
        "Damping with one λ for all exits helps some of them and hurts others.",
        "sections 3.4 and 4.1",
        Mixed(_t1("Damping"), _t1("MSDNet")),
    ),
    _prose(
        "Under damping, a higher λ lowers the accuracy of shallow exits.",
        "section 3.4",
        Over(_lambdas("damping", (None, 3)), LAMBDAS, -1, 0.01, "points that the first 3 exits lose per 0.01 of λ"),
    ),
    _prose(
        "Power-sqrt is less sensitive to λ than damping.",
        "section 4.2, Table 7",
        Steadier(
            _lambdas("power-sqrt"),
            _lambdas("damping"),
            "standard deviation over λ of the mean over exits: damping's less power-sqrt's",
        ),
    ),
    _prose(
        "Under power-sqrt small λ do as well as large ones (0.005 within 0.3 of 0.075 here).",
        "section 4.2, Table 7",
        NoMore(_lambdas("power-sqrt")[-1], _lambdas("power-sqrt")[0], 0.3),
    ),
    _prose(
        "Power-sqrt damps those exits more that do better on the current sample.",
        "section 3.4, Figure 2",
        Ordered(Q("table5", _ROOT, "order")),
        Ordered(Q("table5", _ROOT, "order-train")),
    ),
    _prose(
        "F[N+1] is higher in deeper exits.",
        "sections 3.4 and C.2, Table 5",
        *(Deeper(Q("table5", row, "damping")) for row in (_DAMPING, _ROOT, "+ Dynamic training")),
    ),
    _prose(
        "F[N+1] is smaller under power-sqrt than under damping.",
        "section C.2, Table 5",
        Greater(Q("table5", _DAMPING, "damping"), Q("table5", _ROOT, "damping")),
    ),
    _prose(
        "Where the weights carry gradient, deeper exits have the smaller F[N+1].",
        "section C.2, Table 5",
        Deeper(Q("table5", _WITH, "damping"), -1),
    ),
    _prose(
        "Where the weights carry gradient, deeper exits get the larger weights.",
        "section C.2",
        Deeper(Q("table5", _WITH, "weight")),
    ),
    _prose(
        "Weights without gradient are better than weights with gradient.",
        "section C.2, Table 5, whose means over exits are equal",
        Greater(Q("table5", "+ Dynamic training"), Q("table5", _WITH)),
    ),
    _table(
        "Weights without gradient are better than weights with gradient at the last three exits.",
        "Table 5",
        Greater(Q("table5", "+ Dynamic training", exits=(-3, None)), Q("table5", _WITH, exits=(-3, None))),
    ),
    _prose(
        "For a single exit damping is better than discarding above a threshold, and than early stopping.",
        "section 4.2, Table 3",
        Greater(_table3("Damping loss last only"), _table3("Threshold last only")),
        Greater(_table3("Damping loss last only"), _EARLY_STOPPING),
    ),
    _table(
        "For a single exit discarding above a threshold is better than early stopping.",
        "Table 3",
        Greater(_table3("Threshold last only"), _EARLY_STOPPING),
    ),
    _prose("Gradients above a softmax of 95 % hurt.", "section 3.2, Figure 3", Greater(_figure3(0.95), _figure3(1.0))),
    _prose("Gradients between 70 % and 80 % help.", "section 3.2, Figure 3", Greater(_figure3(0.8), _figure3(0.7))),
    _prose(
        "Gradients between 80 % and 95 % add little: less than those between 70 % and 80 %.",
        "section 3.2, Figure 3",
        LargerGain(_figure3(0.8), _figure3(0.7), _figure3(0.95), _figure3(0.8)),
    ),
    _prose(
        "The more gradients there are, the lower the loss that training converges to.",
        "section 3.2, Figure 3",
        Over(
            tuple(_figure3(threshold, "train-nll") for threshold in THRESHOLDS),
            THRESHOLDS,
            -1,
            0.1,
            "nats on training images that are gained per 10 % of threshold",
        ),
    ),
    _prose(
        "Label smoothing brings nothing, power-sqrt does.",
        "section C.5, Table 8",
        NoMore(Q("table8", "Label smoothing"), Q("table8", "MSDNet"), 0.2),
        Greater(Q("table8", "Power-sqrt"), Q("table8", "MSDNet")),
    ),
    _prose(
        "Power-sqrt and dynamic training are better than plain training on RANet.",
        "section C.3, Table 6",
        Greater(Q("table6", _OURS), Q("table6", "RANet")),
        Greater(*_dynamic("table6", "RANet")),
    ),
    _table(
        "Power-sqrt and dynamic training are better than meta-learning (WPN) on RANet.",
        "Table 6",
        _than_wpn(Q("table6", _OURS)),
        _than_wpn(Q("table6", "+ Dynamic training")),
    ),
    _prose(
        "The gains on RANet are larger than on MSDNet.",
        "section C.3, Tables 1 and 6",
        LargerGain(Q("table6", _OURS), Q("table6", "RANet"), _t1("+ Power-sqrt"), _t1("MSDNet")),
        LargerGain(*_dynamic("table6", "RANet"), *_T1_GAIN),
    ),
    _prose(
        "Power-sqrt and dynamic training bring stable gains, CIFAR-10 setting.",
        "section C.1, Table 4",
        Greater(Q("table4", "+ Power-sqrt"), Q("table4", "MSDNet")),
        Greater(*_dynamic("table4", "MSDNet")),
    ),
    _prose(
        "The gains on CIFAR-10 are smaller than on CIFAR-100.",
        "section C.1, Tables 1 and 4",
        LargerGain(*_T1_GAIN, *_dynamic("table4", "MSDNet")),
        other_data=True,
    ),
    _prose(
        "WPN wins at the first three exits and loses at the last.",
        "section 4.1, Table 2, whose WPN row is another recipe's",
        Greater(Q("table2", "WPN", exits=(None, 3)), Q("table2", "MSDNet", exits=(None, 3))),
        Greater(Q("table2", "MSDNet", exits=(-1, None)), Q("table2", "WPN", exits=(-1, None))),
    ),
    _prose(
        "In dynamic inference WPN's lead over plain training is smaller than at its first three exits.",
        "section 4.1, Figure 4",
        LargerGain(
            Q("figure4", "WPN", exits=(None, 3)),
            Q("figure4", "cross-entropy", exits=(None, 3)),
            Q("figure4", "WPN", "budgeted"),
            Q("figure4", "cross-entropy", "budgeted"),
        ),
    ),
    _prose(
        "In dynamic inference dynamic training is competitive (behind plain training and WPN by less than 0.2 here).",
        "section 4.1, Figure 4",
        NoMore(Q("figure4", "cross-entropy", "budgeted"), Q("figure4", "dynamic", "budgeted"), 0.2),
        _than_wpn(Q("figure4", "dynamic", "budgeted"), 0.2),
    ),
    _prose(
        "Dynamic training takes less time than meta-learning (WPN).",
        "sections 2 and 3.5",
        Faster(Q("table1", "+ Dynamic", "seconds"), Q("table1", "WPN", "seconds")),
    ),
    _prose(
        "The damping neuron hardly adds computation or parameters (at most 0.1 and 1 % at any exit here).",
        "abstract, section 3.3",
        Costs(_t1("+ Power-sqrt", what="operations"), _t1("MSDNet", what="operations"), 0.1),
        Costs(_t1("+ Power-sqrt", what="parameters"), _t1("MSDNet", what="parameters"), 1.0),
    ),
)
