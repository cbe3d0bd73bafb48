"""Learning to weight samples (Han et al., ECCV 2022): a small network weighs each sample at each exit, and learns to.

K exits, B samples of half a batch in this process, C outputs of an exit.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call

from offramp import processes
from offramp.batch import Batch
from offramp.checks import ABOVE_0, SIZE, check_fields, whole
from offramp.errors import UsageError, first_line
from offramp.network import EarlyExitNet
from offramp.objectives import CrossEntropy
from offramp.policy import geometric_shares
from offramp.rules.base import Outcome, TrainingRule
from offramp.rules.optimizer_state import load_state_by_name, state_by_name
from offramp.rules.pseudo_update import next_weights, step_of
from offramp.rules.weight_prediction import Centre, Inputs, WeightPredictor


class Half(NamedTuple):
    """This process's samples of half a batch."""

    images_BCHW: Tensor
    targets_B: Tensor


@dataclass(eq=False)
class WPN(TrainingRule):
    """Two optimiser steps a batch, one on each half, with weights from a network that has just learned on the other.

    Each half is `train` once, the other then being `meta`:

    1. A *weight prediction network* gives a weight w for each exit and sample of `train`. The next weights of the
       network under these w are computed, but not taken. With them, each sample of `meta` goes to one exit: exit k
       takes the share p^k / (p + ... + p^K) of the samples, those it is surest of among the ones that are left. The
       mean cross-entropy of each exit on its own samples, summed over exits, is what the prediction network takes one
       step of Adam on.
    2. The network takes its step on `train`, with what the prediction network now says.

    The weights multiply the shares `[K, B]` of whatever the objective is, damping and its own weights included. The
    prediction network sees, and learns on, the cross-entropy over all C outputs.

    The gradient of step 1 is exact and needs no second derivative of the network: the network's gradient is linear in
    w, so one derivative of the logits in the direction that `meta` asks for, taken forwards, gives it. A network that
    torch cannot differentiate forwards (operations of one's own without `jvp`) is refused.

    With batches of 64 each step sees 32 samples, and there are twice as many steps as with other rules; batches of 128
    give the steps of 64 samples. The published runs had batches of 1024 and lr 0.8 (CIFAR).

    Several processes: each cuts its own share of the batch in two and looks ahead on its own, as in the authors'
    program; the gradients of the prediction network are averaged. "row" and "mat" centre over a process's samples.

    Args:
        epsilon: How far weights may go from 1. Published: 0.8 on CIFAR, 0.3 on ImageNet.
        centre: Weights average to 1 over the exits of each sample ("col", CIFAR), over the samples at each exit
            ("row"), or over both together ("mat", ImageNet).
        p: Sets the share of `meta` that each exit takes; below 1, more samples to early exits.
        inputs: What the prediction network sees of a sample at each exit: "loss", "confidence" or "both".
        hidden: Width of its hidden layers.
        layers: Number of its hidden layers.
        interval: It learns at one batch of so many, counted over the whole run. Published: 1 on CIFAR, 100 on ImageNet.
        meta_lr: Its learning rate at the start; it follows the schedule of the network's.
        meta_weight_decay: Its weight decay.
    """

    needs_plain = True  # the network is run with other weights, and forwards with derivatives

    epsilon: Annotated[float, SIZE] = 0.8
    centre: Centre = "col"
    p: Annotated[float, ABOVE_0] = 0.75
    inputs: Inputs = "loss"
    hidden: Annotated[int, whole(1)] = 500
    layers: Annotated[int, whole(1)] = 1
    interval: Annotated[int, whole(1)] = 1
    meta_lr: Annotated[float, SIZE] = 1e-4
    meta_weight_decay: Annotated[float, SIZE] = 1e-4

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, network: EarlyExitNet) -> None:
        """Refuse a network whose weights would all be 1."""
        if network.num_exits == 1 and self.centre == "col":
            raise UsageError(
                "Weights that average to 1 over the exits of each sample are all 1 where there is one exit; "
                "use centre=row or centre=mat, or the rule standard."
            )

    def set_up(self) -> None:
        """Build the prediction network and its optimiser."""
        bench = self.bench
        step_of(bench.optimizer)
        self.batches = 0  # finished ones
        dtype = torch.promote_types(bench.parameters[0].dtype, torch.float32)
        self.predictor = self._fresh_predictor().to(bench.broken.device, dtype)
        self.adam = torch.optim.Adam(
            self.predictor.parameters(), lr=self.meta_lr, weight_decay=self.meta_weight_decay, fused=True
        )

    def step(self, batch: Batch, progress: float) -> Outcome:
        """Both halves, each in turn."""
        if self.batches == 0:
            self._draw_predictor()
        # Shares differ by at most one, so all processes decide alike.
        smallest, largest = batch.size // processes.world_size(), -(-batch.size // processes.world_size())
        learns = smallest >= 2 and self.batches % self.interval == 0
        cut = (len(batch.targets_B) + 1) // 2
        first = Half(batch.images_BCHW[:cut], batch.targets_B[:cut])
        second = Half(batch.images_BCHW[cut:], batch.targets_B[cut:])
        turns = [(first, second), (second, first)] if largest >= 2 else [(first, second)]
        outcomes = [self._half_step(train, meta if learns else None, progress) for train, meta in turns]
        self.batches += 1
        return Outcome(
            torch.stack([outcome.loss for outcome in outcomes]).sum() / batch.size,
            torch.cat([outcome.logits_KBC for outcome in outcomes], dim=1),
            {name: torch.cat([o.stats_KB[name] for o in outcomes], dim=1) for name in outcomes[0].stats_KB},
        )

    def _half_step(self, train: Half, meta: Half | None, progress: float) -> Outcome:
        """Learn to weigh on `meta`, where there is one; then step on `train`. The loss of the outcome is a sum."""
        bench = self.bench
        bench.optimizer.zero_grad()
        draws = int(torch.randint(2**63 - 1, ()))  # for what is random in the network, so that it can be run again
        with self._drawing(draws):
            logits_KBC = bench.logits(train.images_BCHW)
        terms = bench.objective.terms(logits_KBC, train.targets_B, progress=progress)
        features_BI = self.predictor.features(logits_KBC, train.targets_B, bench.network.num_classes)
        if meta is not None and terms.loss_KB.requires_grad:
            # The gradient of the weighted loss with respect to the logits, as a function of the weights.
            loss = (self.predictor(features_BI) * terms.loss_KB).sum() / len(train.targets_B)
            pull_KBC = torch.autograd.grad(loss, logits_KBC, create_graph=True)[0]
            self._learn(train, meta, draws, logits_KBC, pull_KBC)
        with torch.no_grad():
            weight_KB = self.predictor(features_BI)
        terms = terms.weighted(weight_KB)
        count = processes.sum_over_all(bench.broken.new_full((), len(train.targets_B)))
        loss = terms.loss_KB.sum() / count
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        bench.update(loss)
        return Outcome(terms.loss_KB.detach().sum(), logits_KBC.detach(), terms.stats_KB)

    def _learn(self, train: Half, meta: Half, draws: int, logits_KBC: Tensor, pull_KBC: Tensor) -> None:
        """One step of the prediction network, `pull_KBC` being a function of its parameters."""
        bench = self.bench
        network = {name: weight for name, weight in bench.network.named_parameters() if weight.requires_grad}
        pulls = torch.autograd.grad(
            logits_KBC, list(network.values()), pull_KBC.detach(), retain_graph=True, allow_unused=True
        )
        pairs = zip(network.items(), pulls, strict=True)
        # Detached: two weights may be given one tensor as their gradient.
        gradients = {name: g.detach().requires_grad_() for (name, _), g in pairs if g is not None}
        ahead = next_weights(bench.optimizer, {network[name]: gradient for name, gradient in gradients.items()})
        meta_KBC = self._run({name: ahead[network[name]] for name in gradients}, meta.images_BCHW)
        loss = self._meta_loss(meta_KBC, meta.targets_B) / processes.world_size()
        wanted = torch.autograd.grad(loss, list(gradients.values()), allow_unused=True)
        direction = {name: way for name, way in zip(gradients, wanted, strict=True) if way is not None}
        self.adam.zero_grad()
        change_KBC = self._change(network, direction, train.images_BCHW, draws).to(pull_KBC.dtype)
        torch.autograd.backward(pull_KBC, change_KBC, inputs=list(self.predictor.parameters()))
        first_rate, rate = bench.optimizer.defaults["lr"], bench.optimizer.param_groups[0]["lr"]
        for group in self.adam.param_groups:
            group["lr"] = self.meta_lr * rate / first_rate if first_rate else 0.0
        bench.update(loss, self.adam)

    def _meta_loss(self, logits_KBC: Tensor, targets_B: Tensor) -> Tensor:
        """The sum over exits of the mean cross-entropy of each on the samples that it takes."""
        network = self.bench.network
        log_probs_KBN = network.class_log_probs(logits_KBC.detach())
        shares_KB = taken(log_probs_KBN.amax(-1), geometric_shares([self.p], network.num_exits)[0])
        return (shares_KB * CrossEntropy().terms(logits_KBC, targets_B).loss_KB).sum()

    def _run(self, weights: Mapping[str, Tensor], images_BCHW: Tensor) -> Tensor:
        """The logits of the network with other weights. Its own buffers stay as they are."""
        network = self.bench.network
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        with self.bench.autocast():
            logits_KBC: Tensor = functional_call(network, {**weights, **buffers}, (images_BCHW,))
        return logits_KBC

    def _change(
        self, network: Mapping[str, Tensor], direction: Mapping[str, Tensor], images_BCHW: Tensor, draws: int
    ) -> Tensor:
        """The derivative of the logits of `images`, for weights that move along `direction`."""
        with torch.no_grad(), forward_ad.dual_level(), self._drawing(draws):
            weights = {
                name: forward_ad.make_dual(network[name].detach(), way)  # type: ignore[no-untyped-call]
                for name, way in direction.items()
            }
            try:
                moving_KBC = self._run(weights, images_BCHW)
            except NotImplementedError as error:
                raise UsageError(
                    "WPN needs networks that torch can differentiate forwards, and it cannot this one: "
                    f"{first_line(error)}. Use another rule, in a new folder."
                ) from error
            logits_KBC, change_KBC = forward_ad.unpack_dual(moving_KBC)  # type: ignore[no-untyped-call]
        return torch.zeros_like(logits_KBC) if change_KBC is None else change_KBC

    @contextmanager
    def _drawing(self, seed: int) -> Iterator[None]:
        """Random numbers from `seed`; afterwards the generators are where they were."""
        device = self.bench.broken.device
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            torch.manual_seed(seed)
            yield

    def _fresh_predictor(self) -> WeightPredictor:
        return WeightPredictor(
            self.bench.network.num_exits,
            inputs=self.inputs,
            centre=self.centre,
            epsilon=self.epsilon,
            hidden=self.hidden,
            layers=self.layers,
        )

    def _draw_predictor(self) -> None:
        """Initial weights from the generator of the first step, which depends on the run's seed; one for all."""
        self.predictor.load_state_dict(self._fresh_predictor().state_dict())
        with torch.no_grad():
            for weight in self.predictor.parameters():
                weight.copy_(processes.sum_over_all(weight if processes.rank() == 0 else torch.zeros_like(weight)))

    def state(self) -> dict[str, Tensor]:
        """The prediction network, its optimiser's memory, and the number of batches."""
        tensors = {f"predictor.{name}": weight for name, weight in self.predictor.state_dict().items()}
        tensors |= {f"adam.{name}": value for name, value in state_by_name(self.adam, self.predictor).items()}
        return tensors | {"batches": torch.tensor(self.batches)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.batches = int(state["batches"])
        weights = dict(self.predictor.named_parameters())
        for full_name, tensor in state.items():
            part, _, rest = full_name.partition(".")
            if part == "predictor":
                weights[rest].data.copy_(tensor)
            elif part == "adam":
                load_state_by_name(self.adam, self.predictor, {rest: tensor})


def taken(confidence_KB: Tensor, shares_K: Tensor) -> Tensor:
    """For each exit 1 over the number of its samples at these, 0 at the others: `[K, B]`.

    In turn, exit k takes the floor(B share_k) samples it is surest of among those that are left; the last takes the
    rest. An exit may take none.
    """
    counts: list[int] = (confidence_KB.shape[1] * shares_K).floor().int().tolist()[:-1]
    left_B = torch.ones_like(confidence_KB[0], dtype=torch.bool)
    rows = []
    for confidence_B, count in zip(confidence_KB, counts, strict=False):
        order_B = confidence_B.masked_fill(~left_B, -torch.inf).argsort(descending=True, stable=True)
        takes_B = torch.zeros_like(left_B).index_fill(0, order_B[:count], True)
        rows.append(takes_B.to(confidence_KB) / max(count, 1))
        left_B = left_B & ~takes_B
    rest = max(confidence_KB.shape[1] - sum(counts), 1)
    return torch.stack([*rows, left_B.to(confidence_KB) / rest])
