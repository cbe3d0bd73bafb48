"""Every rule takes the same steps with a compiled network as with the network, or says that it does not use one."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.optim import SGD

from offramp.config import Spec
from offramp.data import Batch
from offramp.network import EarlyExitNet
from offramp.objectives import dynamic
from offramp.rules import RULES, Workbench, build

TAKES_FORMS = [name for name, rule in RULES.items() if not rule.needs_plain]
SETTINGS = {"one-for-all": " teacher=none"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TAKES_FORMS, "dfs ratio=0.3 head=rest dropout=0.5"])
def test_a_compiled_network_takes_the_same_steps(
    network: EarlyExitNet, batch: Batch, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.rules.one_for_all.load", lambda *_, **__: deepcopy(network).eval())
    torch._dynamo.reset()

    def after_steps(own: EarlyExitNet, forward: Any) -> dict[str, torch.Tensor]:
        rule = build(Spec.parse((name + SETTINGS.get(name, "")).split()))
        optimizer = SGD(own.parameters(), lr=0.1, fused=True)
        rule.prepare(Workbench(network=own, forward=forward, objective=dynamic(), optimizer=optimizer))
        torch.manual_seed(0)
        for _ in range(3):
            rule.step(batch, 0.0)
        return own.state_dict()

    plain, own = deepcopy(network), deepcopy(network)
    form = torch.compile(own, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(after_steps(own, form), after_steps(plain, plain))
    assert all(not torch.equal(p, q) for p, q in zip(own.parameters(), network.parameters(), strict=True))
