import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.evaluation.made_up import COST, OPERATIONS, grid_policies, outcomes, record, true_risk

from offramp.certificate import LOSSES, Promise
from offramp.errors import OfframpError, UsageError
from offramp.evaluation import Certificate, Ladder, certify_ladder
from offramp.evaluation.audit import Trials
from offramp.evaluation.bounds import binomial_p_value, lower_limit, upper_limit
from offramp.evaluation.populations import POPULATIONS, Population, calibrated, grid
from offramp.evaluation.promises import climb, disagreement_limits, learn_then_test, rung_promises
from offramp.ladder import rungs_of
from offramp.policy import EVERYBODY, NOBODY, Measure, Policy

RISKS = (0.02, 0.04, 0.08)


@pytest.fixture(scope="module")
def ladder() -> Ladder:
    return certify_ladder(record("search"), record("certify"), COST, risks=RISKS)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_rung_keeps_its_promise_and_is_cheaper_than_the_one_before(loss):
    search, held_out, world = record("search"), record("certify"), record("test", S=100_000, seed=7)
    ladder = certify_ladder(search, held_out, COST, risks=RISKS, loss=loss)
    assert len(ladder.rungs) >= 2
    spent, exits_before = [], None
    for policy, risk in zip(ladder.rungs, ladder.risks, strict=True):
        assert true_risk(policy, loss, world) <= risk
        exits_S = policy.choose(world.logits_KSC, world.num_classes).exits_S
        assert exits_before is None or (exits_S <= exits_before).all()  # no image leaves later on a higher rung
        exits_before = exits_S
        spent.append(torch.tensor(OPERATIONS)[exits_S].double().mean().item())
    assert spent == sorted(spent, reverse=True)
    assert len(set(spent)) == len(spent)


def test_rungs_are_tested_at_their_part_of_the_doubt(ladder):
    for certificate, risk in zip(ladder.certificates, RISKS, strict=True):
        assert certificate.together == 0.95
        assert certificate.promise == Promise(risk, 0.9834)  # 1 - 0.05 / 3, rounded to the safe side
        assert binomial_p_value(certificate.lost, certificate.counted, risk) <= 0.0166
        assert "With 0.9834 confidence (0.95 for all rungs of its ladder at once) the share" in str(certificate)


@pytest.mark.parametrize(("confidence", "rungs"), [(0.95, 4), (0.95, 3), (0.9, 7), (0.999999, 6), (0.5, 100)])
def test_the_parts_of_the_doubt_are_no_more_than_the_whole_and_hardly_less(confidence, rungs):
    levels = [1 - promise.confidence for promise in rung_promises(np.linspace(0.1, 0.9, rungs), confidence, "regret")]
    assert 0.98 * (1 - confidence) < sum(levels) <= (1 - confidence) * (1 + 1e-9)


def staircase(risks: tuple[float, ...]) -> Population:
    """At each step the risk goes from 0.98 of a rung's to just above it: each rung has a candidate that tempts it."""
    shares, sure, right = [], [], []
    before = 0.0
    for n, risk in enumerate(risks):
        for step, up_to in enumerate((0.98 * risk, 1.001 * risk)):
            shares.append(up_to - before)
            sure.append(0.9 - 0.2 * n - 0.1 * step)
            right.append(False)
            before = up_to
    shares.append(1 - before)
    sure.append(0.95)
    right.append(True)
    true = np.array([sure])
    everybody = np.ones(len(sure), dtype=bool)
    return Population("staircase", np.array(shares), true, np.array([right]), true, everybody, grid(41))


def broken(population: Population, promises: tuple[Promise, ...], images: int, trials: int, climbs) -> int:
    """Trials in which any rung breaks its promise."""
    rng = np.random.default_rng(0)
    sets = Trials(population, population.draw(images, trials, rng), population.draw(images, trials, rng))
    chosen_RT = climbs(promises, *sets.tallies(promises[0]))
    risk_J = np.append(population.risks(promises[0].loss), 0.0)  # -1: no rung, no risk
    above_RT = risk_J[chosen_RT] > np.array([promise.risk * (1 + 1e-9) for promise in promises])[:, None]
    return int(above_RT.any(0).sum())


def one_by_one(promises, search, certify):
    """Wrong: each rung as if it were the only one."""
    return np.stack([learn_then_test(Promise(p.risk, 0.9, p.loss), search, certify) for p in promises])


@pytest.mark.parametrize(
    "loss", ["regret", *(pytest.param(one, marks=pytest.mark.slow) for one in LOSSES if one != "regret")]
)
def test_all_promises_hold_at_once(loss):
    """On every population and on the staircase, over 1,000 draws, the rate is not proven above 1 - confidence."""
    risks, trials = (0.02, 0.05, 0.1), 1000
    promises = rung_promises(risks, 0.9, loss)
    populations = [make(grid(41), risks[1]) for make in POPULATIONS] + [staircase(risks)]
    rates = {
        (population.name, images): broken(population, promises, images, trials, climb)
        for population in populations
        for images in (400, 2500)
    }
    assert {where: count for where, count in rates.items() if lower_limit(count, trials, 0.999) > 0.1} == {}
    assert max(rates.values()) > 0  # these populations do tempt


def test_rungs_certified_one_by_one_do_not_hold_at_once():
    promises = rung_promises((0.02, 0.05, 0.1), 0.9, "regret")
    count = broken(staircase((0.02, 0.05, 0.1)), promises, 2500, 2000, one_by_one)
    assert lower_limit(count, 2000, 0.999) > 0.15


def test_no_rung_is_given_an_earlier_candidate_than_the_one_before():
    rng = np.random.default_rng(0)
    for make in POPULATIONS:
        population = make(grid(51), 0.05)
        promises = rung_promises((0.02, 0.05, 0.1), 0.9, "early-error")
        sets = Trials(population, population.draw(300, 200, rng), population.draw(300, 200, rng))
        assert (np.diff(climb(promises, *sets.tallies(promises[0])), axis=0) >= 0).all()


def wrong_limits(make, limits) -> int:
    """Draws, of 2,000, in which a limit of the share that differs is wrong for any candidate, or the one chosen."""
    population = make(grid(51), 0.05)
    left_MJ = population.exits_taken < len(population.confidence_KM)
    early_MJ = np.minimum(population.exits_taken, len(population.confidence_KM) - 1)
    right_MJ = np.take_along_axis(population.right_KM.T, early_MJ, axis=1)
    differs_MJ = left_MJ & (right_MJ != population.full_M[:, None])
    true_J = (population.share_M @ differs_MJ) / np.maximum(population.share_M @ left_MJ, 1e-300)
    certify_TM = population.draw(600, 2000, np.random.default_rng(1))
    return int((limits(certify_TM @ differs_MJ, certify_TM @ left_MJ) < true_J).any(1).sum())


@pytest.mark.parametrize("make", POPULATIONS, ids=lambda make: make.__name__)
def test_the_limit_of_disagreement_holds_whichever_candidate_is_chosen(make):
    assert lower_limit(wrong_limits(make, disagreement_limits), 2000, 0.999) <= 0.005


def test_a_limit_for_one_candidate_does_not_hold_for_the_one_that_is_chosen():
    wrong = wrong_limits(calibrated, lambda differing, early: upper_limit(differing, early, 0.995))
    assert lower_limit(wrong, 2000, 0.999) > 0.01


def test_the_certificate_says_how_often_early_answers_differ(ladder):
    held_out = record("certify")
    for policy, certificate in zip(ladder.rungs, ladder.certificates, strict=True):
        left, _, _ = outcomes(policy, held_out)
        labels_S = policy.choose(held_out.logits_KSC, held_out.num_classes).labels_S
        differs = (labels_S != held_out.logits_KSC[-1].argmax(-1)).numpy()
        seen = certificate.disagreement
        assert (seen.early, seen.differing) == (left.sum(), (left & differs).sum())
        assert seen.differing / seen.early < seen.limit < 1
        assert seen.differing >= certificate.lost  # what is lost differs


def test_a_ladder_is_read_back_and_its_rungs_are_policies(ladder, tmp_path):
    ladder.save(tmp_path / "ladder.json")
    assert Ladder.load(tmp_path / "ladder.json") == ladder
    ladder.rungs[1].save(tmp_path / "policy.json")
    assert Certificate.of(Policy.load(tmp_path / "policy.json")) == ladder.certificates[1]


def test_a_ladder_and_a_policy_are_told_apart(ladder, tmp_path):
    ladder.save(tmp_path / "ladder.json")
    ladder.rungs[0].save(tmp_path / "policy.json")
    with pytest.raises(UsageError, match=r"ladder.json is a ladder of policies, for `offramp serve`"):
        Policy.load(tmp_path / "ladder.json")
    with pytest.raises(UsageError, match=r"policy.json is one policy, no ladder"):
        Ladder.load(tmp_path / "policy.json")


def test_what_may_hold_a_ladder_or_a_policy_is_read_as_rungs(ladder, tmp_path):
    ladder.save(tmp_path / "ladder.json")
    ladder.rungs[0].save(tmp_path / "policy.json")
    assert rungs_of(tmp_path / "ladder.json") == ladder.rungs
    assert rungs_of(tmp_path / "policy.json") == ladder.rungs[:1]
    with pytest.raises(UsageError, match="no file"):
        rungs_of(tmp_path / "none.json")


def test_a_changed_ladder_is_refused(ladder, tmp_path):
    file = tmp_path / "ladder.json"
    ladder.save(file)
    file.write_text(file.read_text().replace('"confidence": 0.95', '"confidence": 0.99', 1))
    with pytest.raises(OfframpError, match="damaged"):
        Ladder.load(file)
    content = json.loads(file.read_text())
    del content["sha256"]
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="certified together"):
        Ladder.load(file)


def test_what_is_no_ladder_is_refused(ladder):
    first, second, third = ladder.rungs
    other = certify_ladder(record("search"), record("certify"), COST, risks=RISKS, measure=Measure("margin")).rungs
    for rungs, says in (
        ((), "at least one rung"),
        ((second, first), "No threshold rises"),
        ((first, first), "risks of a ladder's rungs rise"),
        ((first, *other[1:]), "one network, measure"),
        ((first, replace(second, found={})), "has a certificate"),
        ((*ladder.rungs, third), "certified together"),  # four parts of a third are more than the whole
    ):
        with pytest.raises(UsageError, match=says):
            Ladder(rungs, 0.95)


def test_rungs_that_cannot_be_certified_are_left_out_with_the_reason():
    ladder = certify_ladder(record("search"), record("certify"), COST, risks=(0.001, 0.03, 0.0301))
    assert ladder.risks == (0.03,)
    assert [rung.risk for rung in ladder.left_out] == [0.001, 0.0301]
    assert "At least 4097 images are needed." in ladder.left_out[0].why
    assert "No cheaper policy can be certified at risk 0.0301" in ladder.left_out[1].why
    assert ladder.certificates[0].promise.confidence == 0.9834  # what is left out has had its part


def test_where_no_rung_can_be_certified_that_is_an_error():
    search = record("search", flaw=0.2)
    with pytest.raises(OfframpError, match=r"No rung of the ladder can be certified. None of \d+ policies"):
        certify_ladder(search, record("certify", flaw=0.2), COST, risks=(0.01, 0.02), candidates=grid_policies(search))
    with pytest.raises(UsageError, match="Nothing can be certified with 1200 images, at least 3688 are needed"):
        certify_ladder(search, record("certify"), COST, risks=(0.0005, 0.001))


@pytest.mark.parametrize("risks", [(), (0.02, 0.02), (0.02, 0.01), (0.0, 0.1), (0.1, 1.0), (float("nan"),)], ids=str)
def test_risks_that_do_not_rise_are_refused(risks):
    with pytest.raises(UsageError, match=r"rung"):
        certify_ladder(record("search"), record("certify"), COST, risks=risks)


def test_candidates_of_ones_own_are_taken_along_a_falling_chain():
    search = record("search")
    found = {"fingerprint": search.fingerprint}
    crossed = [Policy((0.6, NOBODY, EVERYBODY), found=found), Policy((NOBODY, 0.5, EVERYBODY), found=found)]
    ladder = certify_ladder(search, record("certify"), COST, risks=RISKS, candidates=[*grid_policies(search), *crossed])
    assert ladder.certificates[0].candidates <= 40
    mixed = [*grid_policies(search), Policy((0.5, 0.5, EVERYBODY), Measure("margin"), found)]
    with pytest.raises(UsageError, match="one measure for all rungs"):
        certify_ladder(search, record("certify"), COST, risks=RISKS, candidates=mixed)


def test_copies_prove_nothing_here_either():
    search, held_out = record("search"), record("certify")
    held_out.logits_KSC[:, 600:] = held_out.logits_KSC[:, :600]
    held_out.targets_S[600:] = held_out.targets_S[:600]
    certificates = certify_ladder(search, held_out, COST, risks=(0.03, 0.06)).certificates
    assert [(c.copies, c.counted) for c in certificates] == [(600, 600)] * len(certificates)
    assert all(c.disagreement.early <= 600 for c in certificates)
