"""Policies with a promise: candidates from the search half, tested on the certify half, the cheapest that passes.

K exits, S images, N classes, J candidates. What is promised, and by which argument: docs/method.md, "Promises".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from offramp.certificate import Certificate, Disagreement, Promise
from offramp.choices import Loss
from offramp.costs import Cost
from offramp.errors import OfframpError, UsageError
from offramp.evaluation.bounds import IntArray
from offramp.evaluation.copies import repeats
from offramp.evaluation.promises import (
    DISAGREEMENT_CONFIDENCE,
    BoolArray,
    LossCounts,
    bets,
    disagreement_limits,
    events,
    images_needed,
    learn_then_test,
)
from offramp.evaluation.record import Record
from offramp.evaluation.search import candidates as found_on
from offramp.evaluation.thresholds import check_search, policies
from offramp.policy import CERTIFICATE, SOFTMAX, Measure, Policy

METHOD = "Learn-then-Test, fixed sequence"
BINOMIAL, BETTING = "exact binomial", "betting on {-1, 0, 1}"


def certify(
    search: Record,
    certify: Record,
    cost: Cost,
    *,
    risk: float = 0.01,
    confidence: float = 0.95,
    loss: Loss = "regret",
    per_class: bool = False,
    measure: Measure | None = None,
    candidates: Sequence[Policy] | None = None,
) -> Policy:
    """The cheapest policy certified to keep a promise, with its `Certificate`.

    What the network learnt from before is not looked at here: `offramp.commands.certify` knows it of runs.

    Images that repeat others, told by equal logits (`evaluation.copies`), prove nothing: a promise that rested on them
    would be broken more often than it says. So a policy has to pass on the certify images without them, and, because
    pictures may also be equal by nature, on all of them.

    Args:
        search: Logits on the search half: candidates and their order come from here.
        certify: Logits of the same network on the certify half: the tests use these images, and nothing else may.
        risk: With probability `confidence` the risk, the mean of `loss` (see `Promise`), is at most this.
        confidence: See `risk`.
        loss: See `risk`.
        per_class: Promise it for the images of each class.
        measure: How confidence is read off logits; the largest softmax by default.
        candidates: Policies to choose from, found without the certify half; by default all that the search for
            thresholds looks at on `search`.

    Raises:
        UsageError: Records that are not of the two halves or not of one network, or that hold an image twice;
            candidates found on other data or for another network or certified before, too few images for any such
            promise.
        OfframpError: No candidate that lets an image leave keeps the promise.
    """
    promise = Promise(risk, confidence, loss)
    tested = Tested.of(promise, search, certify, cost, per_class, measure, candidates)
    chosen = int(learn_then_test(promise, tested.on_search, tested.on_certify, axis=0))
    if chosen < 0:
        raise OfframpError(tested.none_passed(promise))
    return tested.certified(promise, chosen)


@dataclass(frozen=True, eq=False)
class Tested:
    """Candidates, the dearest first, and what they do on both halves: counts `[G, J]` of G groups of images.

    Attributes:
        differing: How the early answers of each candidate differ from the last exit's.
        copies: See `Certificate`.
    """

    candidates: Sequence[Policy]
    on_search: LossCounts
    on_certify: LossCounts
    differing: Sequence[Disagreement]
    certify: Record
    per_class: bool
    copies: int

    @classmethod
    def of(
        cls,
        promise: Promise,
        search: Record,
        certify: Record,
        cost: Cost,
        per_class: bool,
        measure: Measure | None,
        candidates: Sequence[Policy] | None,
        *,
        falling: bool = False,
    ) -> "Tested":
        """Arguments as of `certify`; `falling`: only candidates none of whose thresholds is above one before it."""
        _check_records(search, certify)
        repeated_S = repeats(certify, search)
        _check_enough(promise, certify, per_class, ~repeated_S)
        candidates = _candidates(candidates, search, cost, measure)
        seen = _replay(candidates, search)
        kept = _frontier(seen, search, cost, promise.loss)
        if falling:
            kept = _falling(candidates, kept, seen, cost)
        candidates = [candidates[j] for j in kept]
        groups = [_groups(part, per_class) for part in (search, certify)]
        if repeated_S.any():
            groups = [np.concatenate([groups[0]] * 2), np.concatenate([groups[1], groups[1] & ~repeated_S])]
        replay = _replay(candidates, certify)
        return cls(
            candidates=candidates,
            on_search=_tally(seen.of(kept), promise.loss, groups[0]),
            on_certify=_tally(replay, promise.loss, groups[1]),
            differing=_disagreements(replay, ~repeated_S),
            certify=certify,
            per_class=per_class,
            copies=int(repeated_S.sum()),
        )

    def certified(self, promise: Promise, chosen: int, together: float | None = None) -> Policy:
        """A candidate that passed, with its certificate."""
        is_bet = bets(promise, self.on_search)[..., chosen].any()
        distinct = slice(-(self.certify.num_classes if self.per_class else 1), None)  # of the groups
        lost, gained, counted = (int(count_GJ[distinct, chosen].sum()) for count_GJ in self.on_certify)
        certificate = Certificate(
            promise=promise,
            per_class=self.per_class,
            method=METHOD,
            bound=BETTING if is_bet else BINOMIAL,
            images=self.certify.num_images,
            counted=counted,
            lost=lost,
            gained=gained,
            candidates=len(self.candidates),
            split=self.certify.split,
            fingerprint=self.certify.fingerprint,
            weights=self.certify.weights,
            copies=self.copies,
            together=together,
            disagreement=self.differing[chosen],
        )
        return certificate.on(self.candidates[chosen])

    def none_passed(self, promise: Promise) -> str:
        """Why nothing was certified."""
        return _none_passed(promise, self.on_certify, self.certify, self.copies)


def _none_passed(promise: Promise, on_certify: LossCounts, certify: Record, copies: int) -> str:
    risk_GJ = on_certify.risk
    seen_J = risk_GJ.max(0)[(on_certify.counted > 0).all(0)]  # where nothing is counted no risk is seen
    seen = f"the lowest risk seen is {seen_J.min():.4g}" if len(seen_J) else "none lets enough images leave"
    needed = images_needed(promise)
    few = ""
    if certify.num_images - copies < needed:
        few = f" {'Without gains at' if promise.loss == 'drop' else 'At'} least {needed} images are needed."
    repeated = f" ({copies} of them repeat others or images of the search half)" if copies else ""
    return (
        f"None of {risk_GJ.shape[-1]} policies that let images leave early can be certified at risk {promise.risk} "
        f"and confidence {promise.confidence} with the {certify.num_images} images of {certify.split}{repeated}, "
        f"where {seen}.{few} Promise less, or hold out more images."
    )


def _candidates(
    candidates: Sequence[Policy] | None, search: Record, cost: Cost, measure: Measure | None
) -> Sequence[Policy]:
    """The caller's, or all that the search for thresholds looks at; checked."""
    if candidates is None:
        tried = found_on(search, cost, measure or SOFTMAX)
        how = [tried.how(j) for j in range(len(tried.thresholds_JK))]
        candidates = policies(tried.thresholds_JK, tried.seen, search, measure or SOFTMAX, how)
    elif measure is not None:
        raise UsageError("Candidates have their own measures; give candidates or a measure, not both.")
    _check_candidates(candidates, search, cost)
    return candidates


class _Replay(NamedTuple):
    """What policies do to the images of a record: `[J, S]`, NumPy."""

    exits: IntArray
    left: BoolArray
    right: BoolArray
    full: BoolArray
    differs: BoolArray  # from the last exit's answer

    def of(self, policies: Sequence[int]) -> "_Replay":
        """Some of the policies alone."""
        return _Replay(self.exits[policies], *(mask_JS[policies] for mask_JS in self[1:]))


def _replay(policies: Sequence[Policy], record: Record) -> _Replay:
    exits, right, full, differs = [], [], [], []
    rows_S = torch.arange(record.num_images)
    for policy in policies:
        confidence_KS, labels_KS = record.read(policy.measure)  # the costly part, the same for most, and kept
        exits_S = policy.exits(confidence_KS)
        answers_S = labels_KS[exits_S, rows_S]
        exits.append(exits_S.numpy())
        right.append((answers_S == record.targets_S).numpy())
        differs.append((answers_S != labels_KS[-1]).numpy())
        full.append((labels_KS[-1] == record.targets_S).numpy())
    exits_JS = np.stack(exits)
    left_JS = exits_JS < len(record.logits_KSC) - 1
    return _Replay(exits_JS, left_JS, np.stack(right), np.stack(full), np.stack(differs))


def _disagreements(replay: _Replay, distinct_S: BoolArray) -> list[Disagreement]:
    """Of each candidate, by the images without copies; the limit is the larger of theirs and that of all images."""
    limits, counts = [], []
    for counted_S in (np.ones_like(distinct_S), distinct_S):
        early_J = (replay.left & counted_S).sum(1)
        differing_J = (replay.left & replay.differs & counted_S).sum(1)
        limits.append(disagreement_limits(differing_J, early_J))
        counts.append((early_J, differing_J))
    rows = zip(*counts[-1], np.maximum(*limits), strict=True)
    return [
        Disagreement(int(early), int(differing), float(limit), DISAGREEMENT_CONFIDENCE)
        for early, differing, limit in rows
    ]


def _falling(candidates: Sequence[Policy], kept: Sequence[int], seen: _Replay, cost: Cost) -> list[int]:
    """Those of `kept` (the dearest first) along which no threshold rises, so that no image leaves later than before.

    Of all such chains the one whose steps in operations on search are smallest: their squares have the least sum.
    """
    operations_K = np.array([count.operations for count in cost.exits], dtype=np.float64) / cost.exits[-1].operations
    operations_J = np.array([1.0, *operations_K[seen.exits[kept]].mean(1), operations_K[0]])
    thresholds_JK = np.array([candidates[j].thresholds for j in kept])
    J = len(kept)
    may_follow = np.ones((J + 2, J + 2), dtype=bool)  # any may be the first, and any the last
    may_follow[1:-1, 1:-1] = (thresholds_JK[None] <= thresholds_JK[:, None]).all(-1)
    total_J, before = np.zeros(J + 2), np.zeros(J + 2, dtype=np.int64)
    for j in range(1, J + 2):
        steps = total_J[:j] + (operations_J[:j] - operations_J[j]) ** 2
        steps[~may_follow[:j, j]] = np.inf
        before[j], total_J[j] = j - 1 - steps[::-1].argmin(), steps.min()  # of equal ones the longer chain
    chain, j = [], int(before[J + 1])
    while j:
        chain.append(kept[j - 1])
        j = int(before[j])
    return chain[::-1]


def _groups(record: Record, per_class: bool) -> BoolArray:
    """The images `[G, S]` of each group of which the promise is to hold: all, or those of each class."""
    if not per_class:
        return np.ones((1, record.num_images), dtype=bool)
    return np.asarray(np.arange(record.num_classes)[:, None] == record.targets_S.numpy())


def _tally(replay: _Replay, loss: Loss, groups_GS: BoolArray) -> LossCounts:
    """Counts `[G, J]` of the images of each group."""
    happens = events(loss, replay.left, replay.right, replay.full)
    # Products of floats are fast and, below 2^24, exact.
    counts_GJ = (groups_GS.astype(np.float32) @ mask_JS.T.astype(np.float32) for mask_JS in happens)
    return LossCounts(*(count_GJ.astype(np.int64) for count_GJ in counts_GJ))


def _frontier(replay: _Replay, search: Record, cost: Cost, loss: Loss) -> list[int]:
    """Those under which images leave and that no cheaper one beats in losses, on search; the dearest first."""
    operations_K = np.array([count.operations for count in cost.exits], dtype=np.float64)
    operations_J = operations_K[replay.exits].mean(-1)
    (lost_J,), _, (counted_J,) = _tally(replay, loss, _groups(search, per_class=False))
    share_J = lost_J / np.maximum(counted_J, 1)
    kept: list[int] = []
    for j in np.lexsort((share_J, operations_J)).tolist():
        # Of equal losses the dearer stay: they are more cautious, and cost the test nothing.
        if replay.left[j].any() and (not kept or share_J[j] <= share_J[kept[-1]]):
            kept.append(j)
    if not kept:
        raise OfframpError(f"No candidate lets an image of {search.split} leave early; there is nothing to certify.")
    return kept[::-1]


def _check_records(search: Record, certify: Record) -> None:
    check_search(search)
    if certify.split.rpartition("/")[2] != "certify":
        raise UsageError(
            f"Certificates rest on the `certify` half of the held-out images, which nothing else has touched, not on "
            f"{certify.split}. Record `val.certify`; with holdout=0 there is none, so train with a holdout."
        )
    if search.split.rpartition("/")[0] != certify.split.rpartition("/")[0]:
        raise UsageError(f"{search.split} and {certify.split} are not of one data set.")
    if search.weights != certify.weights:
        raise UsageError(f"{search.split} and {certify.split} were recorded with different weights.")
    for part in (search, certify):
        indices, times = np.unique(part.indices_S.numpy(), return_counts=True)
        if len(indices) < part.num_images:
            raise UsageError(
                f"{part.split} holds {(times > 1).sum()} images more than once, such as image "
                f"{indices[times > 1][0]}: again it proves nothing. Record each once."
            )
    shared = np.intersect1d(search.indices_S.numpy(), certify.indices_S.numpy())
    if len(shared) or search.fingerprint == certify.fingerprint:
        raise UsageError(
            f"{search.split} and {certify.split} share {len(shared)} images: thresholds found on images say nothing "
            f"when they are tested on the same."
        )


def _check_enough(promise: Promise, certify: Record, per_class: bool, distinct_S: BoolArray) -> None:
    if promise.loss == "drop":
        return  # gains make up for losses: with enough of them few images do
    needed, images, of = images_needed(promise), int(distinct_S.sum()), "images"
    if per_class:
        images_N = certify.targets_S[torch.from_numpy(distinct_S)].bincount(minlength=certify.num_classes)
        images, of = int(images_N.min()), f"images of class {certify.class_names[int(images_N.argmin())]!r}"
    if images < needed:
        copies = int((~distinct_S).sum())
        repeated = f", {copies} that repeat others or images of the search half left out" if copies else ""
        raise UsageError(
            f"Nothing can be certified with {images} {of}{repeated}, at least {needed} are needed (risk "
            f"{promise.risk}, confidence {promise.confidence}). Hold out more images, or promise less."
        )


def _check_candidates(candidates: Sequence[Policy], search: Record, cost: Cost) -> None:
    if not candidates:
        raise UsageError("There are no candidates: a network with one exit has nowhere to leave early.")
    for policy in candidates:
        policy.check_network(search.weights)
        if CERTIFICATE in policy.found or CERTIFICATE in (policy.found.get("from") or {}):
            raise UsageError(
                "A candidate has a certificate, so that certify images had a say in its being here; only policies "
                "found on the search half can be certified."
            )
        if not policy.num_exits == len(search.logits_KSC) == len(cost.exits):
            raise UsageError(
                f"A candidate is for {policy.num_exits} exits, the record of {len(search.logits_KSC)}, the cost of "
                f"{len(cost.exits)}."
            )
        if policy.found.get("fingerprint", search.fingerprint) != search.fingerprint:
            raise UsageError(
                f"A candidate was found on {policy.found.get('split', 'other data')}, not on the {search.split} given "
                f"here; only policies found on the search half can be certified."
            )
