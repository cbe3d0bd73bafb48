import dataclasses

import pytest

from offramp.certificate import Promise
from offramp.commands.policy_files import given_policy
from offramp.errors import UsageError
from offramp.evaluation import Certificate
from offramp.files import RunFolder
from offramp.policy import EVERYBODY, Policy


def test_a_given_policy_whose_certificate_is_not_its_own_is_refused(make_run):
    run = make_run()
    certificate = Certificate(Promise(), False, "how", "exact", 299, 299, 0, 0, 9, "x/certify", "c", "w")
    policy = certificate.on(Policy((0.5, 0.5, EVERYBODY)))
    damaged = dataclasses.replace(policy, found={"certificate": {"whatever": 1}})
    policy.save(run / "policy.json")
    assert given_policy(None, RunFolder(run)) == (policy, run / "policy.json")
    for edited in (dataclasses.replace(policy, thresholds=(0.5, 0.4, EVERYBODY)), damaged):
        edited.save(run / "policy.json")
        with pytest.raises(UsageError, match=r"policy.json: The policy.*certificate"):
            given_policy(None, RunFolder(run))
