"""Meta-GF (Sun et al., ECCV 2022): each exit trains a copy of the network, and learnt shares merge the copies.

K exits, B images here, C outputs, M weights (tensors) of the network, P numbers of one weight, R exits that reach it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from offramp.batch import Batch
from offramp.checks import SHARE, SIZE, check_fields
from offramp.errors import UsageError
from offramp.network import EarlyExitNet
from offramp.objectives import Terms
from offramp.rules.base import Outcome, TrainingRule
from offramp.rules.published import by_depth

_AUXILIARY = (1.0, 1.0, 0.6, 0.6, 0.75, 0.9, 1.0)  # a, for 7 exits
_LARGEST = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)  # C for 7 exits; that of the last is its constant weight


@dataclass(eq=False)
class MetaGF(TrainingRule):
    """K + 1 passes over the images make one epoch of the method; the number of epochs must be a multiple of K + 1.

    1. From the same weights, each exit k in turn trains for one pass, on L_k + auxiliary * sum over j != k of a_j L_j,
       with L_k the share of exit k in the objective. One optimiser with its memory serves all passes.
    2. Each weight becomes the mean of what these passes made of it, over the exits whose logits depend on it, exit k
       having the weight sigmoid(eta_k) over the sum of the sigmoids; eta is one number for each exit and weight.
    3. In one more pass Adam trains eta alone, on the sum of tau_k L_k of the merged network, where tau_K = 1 and
       tau_k = min(C_k, 0.01 + C_k e/E) in epoch e (from 0) of the E of the method. The merged weights are where the
       next epoch starts; eta starts there from `kept` times what it was and 1 - `kept` times what it has become.

    Running statistics of batch norm are not merged: they go on through all passes. a = (1, 1, .6, .6, .75, .9, 1) and
    C = (.15, .3, .45, .6, .75, .9) are published for 7 exits; for others they are read off at the same depth, C ending
    at the last exit's 1. Between passes, and so in the metrics, the weights are those that the method has by then: the
    merged ones of the epoch before while exits train, under the running statistics of the last pass. The learning rate
    follows the passes. Published runs have one rate for all passes of an epoch. (The authors' program stops training
    eta after its first epoch; here it goes on. Shares for each channel, which they use for VGG, are not here.)

    Args:
        auxiliary: How much the other exits count in the pass of one exit.
        eta_lr: Learning rate of eta, a tenth of it from half of the training on.
        kept: Share of the old eta, in [0, 1].
    """

    auxiliary: Annotated[float, SIZE] = 0.1
    eta_lr: Annotated[float, SIZE] = 0.1
    kept: Annotated[float, SHARE] = 0.9

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, network: EarlyExitNet) -> None:
        """Refuse a single exit."""
        if network.num_exits == 1:
            raise UsageError(
                "Meta-GF merges what several exits make of the weights; for one exit use the rule standard."
            )

    def epochs_together(self, network: EarlyExitNet) -> int:
        """One pass for each exit, and one for eta."""
        return network.num_exits + 1

    def set_up(self) -> None:
        """Make eta and its optimiser."""
        bench = self.bench
        self.names = [name for name, weight in bench.network.named_parameters() if weight.requires_grad]
        self.passes = self.steps = self.steps_per_pass = 0  # finished ones; those of this pass; those of any
        self._reach_KM: Tensor | None = None  # known from the first step on
        self._start: dict[str, Tensor] = {}  # the weights that all exits start from
        self._trained: dict[str, Tensor] = {}  # [R, P]: what the exits that reach a weight made of it, so far
        dtype = torch.promote_types(bench.parameters[0].dtype, torch.float32)
        initial_KM = torch.ones(bench.network.num_exits, len(self.names), dtype=dtype, device=bench.broken.device)
        self.eta_KM = nn.Parameter(initial_KM)
        self._eta_before_KM = initial_KM.clone()
        self.adam = torch.optim.Adam([self.eta_KM], lr=self.eta_lr, fused=True)

    def step(self, batch: Batch, progress: float) -> Outcome:
        """A step of the exit whose turn it is, or of eta."""
        if self._reach_KM is None:
            reach_KM = reach(self.bench.network, self.bench.parameters, batch.images_BCHW)
            self._exits_of = [column.nonzero().flatten().tolist() for column in reach_KM.T]
            self._reach_KM = reach_KM.to(self._eta_before_KM)
        if self._turn == self.bench.network.num_exits:
            outcome = self._eta_step(batch, progress)
        else:
            if self._turn == 0 and self.steps == 0:
                self._start = {name: weight.detach().clone() for name, weight in self._weights()}
            outcome = self.bench.descend(batch, progress, reweight=self._reweight)
        self.steps += 1
        return outcome

    def end_epoch(self) -> None:
        """Put the exit's weights aside and the start's back; after the last exit merge; after eta's pass smooth it."""
        K = self.bench.network.num_exits
        if self._turn < K:
            self._put_aside()
        if self._turn == K - 1:
            self._eta_before_KM = self.eta_KM.detach().clone()
            self._merge()
        if self._turn == K:
            with torch.no_grad():
                self.eta_KM.lerp_(self._eta_before_KM, self.kept)
            self._start, self._trained = {}, {}
        self.passes, self.steps_per_pass, self.steps = self.passes + 1, self.steps, 0

    @property
    def _turn(self) -> int:
        """Whose pass it is: that of exit 0 to K - 1, or K for eta's."""
        return self.passes % (self.bench.network.num_exits + 1)

    def _weights(self) -> list[tuple[str, nn.Parameter]]:
        return list(zip(self.names, self.bench.parameters, strict=True))

    def _reweight(self, terms: Terms, logits_KBC: Tensor, targets_B: Tensor, progress: float) -> Terms:
        factors = self._factors(progress)
        rows = [factor * loss_B for factor, loss_B in zip(factors, terms.loss_KB, strict=True)]
        return Terms(torch.stack(rows), terms.stats_KB)

    def _factors(self, progress: float) -> list[float]:
        """What the share of each exit is multiplied by in this pass."""
        K, turn = self.bench.network.num_exits, self._turn
        if turn < K:
            return [1.0 if k == turn else self.auxiliary * a for k, a in enumerate(by_depth(_AUXILIARY, K))]
        done = self._share_of_epochs(progress)
        return [*(min(C, 0.01 + C * done) for C in by_depth(_LARGEST, K)[:-1]), 1.0]

    def _share_of_epochs(self, progress: float) -> float:
        """e/E, in eta's pass: there `progress` is above 0 and the steps of a pass are known."""
        together = self.bench.network.num_exits + 1
        passes = self.passes + self.steps / self.steps_per_pass
        return (self.passes // together) / round(passes / progress / together)

    def _eta_step(self, batch: Batch, progress: float) -> Outcome:
        bench = self.bench
        bench.optimizer.zero_grad()
        logits_KBC = bench.logits(batch.images_BCHW)
        terms = bench.objective.terms(logits_KBC, batch.targets_B, progress=progress)
        terms = self._reweight(terms, logits_KBC, batch.targets_B, progress)
        loss = terms.loss_KB.sum() / batch.size
        self.adam.zero_grad()
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
            torch.autograd.backward(self._shares(), self._pull())
        for group in self.adam.param_groups:
            group["lr"] = self.eta_lr * (1.0 if self._share_of_epochs(progress) < 0.5 else 0.1)
        bench.update(loss, self.adam)
        bench.optimizer.zero_grad()
        self._merge()
        return Outcome(loss.detach(), logits_KBC.detach(), terms.stats_KB)

    def _shares(self) -> Tensor:
        """Of the exits in each weight, `[K, M]`: they add up to 1 over those that reach it (0 where none does)."""
        assert self._reach_KM is not None
        sizes_KM = self.eta_KM.sigmoid() * self._reach_KM
        return sizes_KM / sizes_KM.sum(0).clamp_min(torch.finfo(sizes_KM.dtype).tiny)

    def _pull(self) -> Tensor:
        """The gradient with respect to the shares, up to a number for each weight: shares of a weight add up to 1."""
        pull_KM = torch.zeros_like(self.eta_KM)
        for m, (name, weight) in enumerate(self._weights()):
            if name in self._trained and weight.grad is not None:
                difference_RP = self._trained[name] - weight.detach().reshape(-1)
                pull_KM[self._exits_of[m], m] = (difference_RP @ weight.grad.reshape(-1)).to(pull_KM)
        return pull_KM

    @torch.no_grad()
    def _merge(self) -> None:
        shares_KM = self._shares()
        for m, (name, weight) in enumerate(self._weights()):
            if name in self._trained:
                trained_RP = self._trained[name]
                weight.copy_((shares_KM[self._exits_of[m], m].to(trained_RP) @ trained_RP).view_as(weight))

    @torch.no_grad()
    def _put_aside(self) -> None:
        for m, (name, weight) in enumerate(self._weights()):
            if self._turn in self._exits_of[m]:
                rows = [self._trained[name]] if name in self._trained else []
                self._trained[name] = torch.cat([*rows, weight.reshape(1, -1)])
            weight.copy_(self._start[name])

    def state(self) -> dict[str, Tensor]:
        """Where the passes stand, the weights put aside, and eta with its optimiser's memory."""
        tensors = {"eta": self.eta_KM.detach(), "eta_before": self._eta_before_KM}
        tensors |= {f"adam.{key}": value for key, value in self.adam.state.get(self.eta_KM, {}).items()}
        tensors |= {f"start.{name}": weight for name, weight in self._start.items()}
        tensors |= {f"trained.{name}": rows for name, rows in self._trained.items()}
        return tensors | {"counts": torch.tensor([self.passes, self.steps, self.steps_per_pass])}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.passes, self.steps, self.steps_per_pass = state["counts"].tolist()
        self.eta_KM.data.copy_(state["eta"])
        self._eta_before_KM.copy_(state["eta_before"])
        homes: dict[str, Any] = {"adam": self.adam.state[self.eta_KM], "start": self._start, "trained": self._trained}
        for full_name, tensor in state.items():
            part, _, name = full_name.partition(".")
            if part in homes:
                homes[part][name] = tensor.to(self.eta_KM.device, copy=True)


def reach(network: EarlyExitNet, parameters: Sequence[nn.Parameter], images_BCHW: Tensor) -> Tensor:
    """Whether the logits of each exit depend on each of the parameters, `[K, M]`; `images` may be none."""
    blank = images_BCHW.new_zeros(1, *images_BCHW.shape[1:])
    mode = network.training
    try:
        logits = network.eval().exit_logits(blank)
    finally:
        network.train(mode)
    rows = []
    for logits_BC in logits:
        if logits_BC.requires_grad:
            gradients = torch.autograd.grad(logits_BC.sum(), parameters, retain_graph=True, allow_unused=True)
            rows.append([gradient is not None for gradient in gradients])
        else:
            rows.append([False] * len(parameters))
    return torch.tensor(rows)
