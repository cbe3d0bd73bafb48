"""What is served: a run opened with its policies, its backend, and how its images are prepared.

K exits.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import torch

from offramp.certificate import Certificate
from offramp.choices import Backend
from offramp.costs import cost
from offramp.data import Inputs
from offramp.devices import device_named
from offramp.errors import OfframpError, UsageError
from offramp.files import RunFolder, load
from offramp.ladder import rungs_of
from offramp.network import EarlyExitNet
from offramp.policy import Policy
from offramp.runtime.backends import usual_forms
from offramp.runtime.plan import SIZES, Plan
from offramp.runtime.program import Form, Program, certified_form, quiet_torch
from offramp.runtime.runner import Runner
from offramp.runtime.tuning import adopt_file
from offramp.serve.contract import Served
from offramp.storage import weights_hash

CHUNKS = {"cpu": 16, "cuda": 128}  # images that run together: more of them make those that come meanwhile wait
FASTEST: tuple[Backend, ...] = ("openvino", "onnxruntime", "torch")  # on a CPU, as a rule: docs/performance.md


class Watch(Protocol):
    """Watches without labels whether early answers agree with the last exit's as often as they should."""

    alarm: str | None
    """What it has found, in words; None while nothing."""

    def observe(self, disagreed: bool) -> None:
        """One image that left early was also run to the end."""


@dataclass(frozen=True, eq=False)
class Model:
    """A network that runs under policies, in segments.

    Attributes:
        segments: First and last stage of each, from 0: up to every exit that may answer under any policy.
        plan: To which numbers of rows segments are rounded up, and how many at most run together.
        inputs: How an image becomes the network's input.
        guards: One a rung, or None for a rung that is not watched.
        notes: What the one who serves it should know, as sentences: why a backend or a tuning is not used.
        weights: Hash of the network's; empty where it is not of a run.
    """

    served: Served
    program: Program
    segments: tuple[tuple[int, int], ...]
    plan: Plan
    inputs: Inputs | None = None
    guards: Sequence[Watch | None] = ()
    notes: tuple[str, ...] = ()
    weights: str = ""

    def __post_init__(self) -> None:
        if len({policy.measure for policy in self.served.ladder}) != 1:
            raise UsageError("The policies of a ladder must have one measure: a confidence is read off logits once.")
        object.__setattr__(self, "guards", tuple(self.guards) or (None,) * len(self.served.ladder))

    @property
    def chunk(self) -> int:
        """Most images that run together."""
        return self.plan.chunk or 64

    def warm_up(self) -> None:
        """Run every segment on every number of rows that is used, so that no request waits for what is compiled."""
        for size in sorted({self.plan.rows(images) for images in range(1, self.chunk + 1)}):
            self._run(size, self.segments)
        self._run(1, [(k, k) for k in range(self.program.num_exits)])  # images that are shown exit by exit

    @torch.inference_mode()
    def _run(self, size: int, segments: Sequence[tuple[int, int]]) -> None:
        with quiet_torch(self.program):
            carry = self.program.enter(torch.zeros(size, *self.served.image_shape))
            for first, last in segments:
                _, carry = self.program.segment(first, last, carry)


def open_model(
    run: str | Path,
    *,
    policy: str | Path | Policy | None = None,
    backend: Literal["auto", Backend] = "auto",
    device: str = "cpu",
    chunk: int | None = None,
    inputs: Inputs | None = None,
    guards: Callable[[Sequence[Policy]], Sequence[Watch | None]] | None = None,
    allow_code: Sequence[str] = (),
) -> Model:
    """A finished run as it is served, warmed up.

    Args:
        policy: One to be followed, or its file; by default the run's ladder, or its policy. Where there is none the
            last exit answers.
        backend: `auto`: that of the certificate where it is of one, that of the run's `bench.json` where it was made
            here, else the first of OpenVINO, onnxruntime and torch that is installed and runs the network.
        chunk: Most images that run together; by default 16 on a CPU and 128 on a GPU.
        inputs: For a run that does not say how images are prepared.
        guards: Makes a guard for each rung.

    Raises:
        UsageError: No finished run, one that does not say how images are prepared, policies for other weights, a
            backend that cannot run the network or that a certificate is not of.
        OfframpError: Damaged files.
    """
    folder = RunFolder(run, allow_code)
    network = load(folder.path, allow_code=allow_code)
    inputs = inputs or _inputs(folder)
    inputs.check_network(network, folder.path)
    weights = weights_hash(network.state_dict())
    ladder = policies_of(folder, policy, network.num_exits, weights)
    runner, plan, notes = _set_up(network, ladder, folder, backend, device_named(device))
    chunk = chunk or CHUNKS[runner.program.device.type]
    plan = replace(plan, chunk=chunk, sizes=tuple(size for size in SIZES if size <= chunk))
    whole = max(cost(network, inputs.image_shape).exits[-1].operations, 1)
    shares_K = tuple(spent / whole for spent in runner.operations(plan, inputs.image_shape))
    served = served_of(folder, ladder, inputs, shares_K, weights)
    watched = () if guards is None else guards(ladder)
    model = Model(served, runner.program, runner.segments(plan), plan, inputs, watched, tuple(notes), weights)
    model.warm_up()
    return model


def _inputs(folder: RunFolder) -> Inputs:
    if not folder.input.is_file():
        raise UsageError(
            f"{folder.path} does not say how an image becomes its network's input: it has no {folder.input.name}. "
            f"`{folder.command('predict')} IMAGE` writes it, where the run's data say it."
        )
    return Inputs.load(folder.input)


def policies_of(
    folder: RunFolder, policy: str | Path | Policy | None, num_exits: int, weights: str
) -> tuple[Policy, ...]:
    """The policies that a network with these weights is served under, by rising risk."""
    if isinstance(policy, Policy):
        ladder: tuple[Policy, ...] = (policy,)
    elif policy is None and not folder.ladder.is_file() and not folder.policy.is_file():
        ladder = (Policy.to_the_end(num_exits),)
    else:
        ladder = rungs_of(policy or (folder.ladder if folder.ladder.is_file() else folder.policy))
    for rung in ladder:
        rung.check_network(weights)
    return ladder


def served_of(
    folder: RunFolder, ladder: tuple[Policy, ...], inputs: Inputs, operations_K: tuple[float, ...], weights: str
) -> Served:
    """A run as who asks sees it."""
    certificates = [Certificate.of(policy) for policy in ladder]
    parts = itertools.chain([weights], (policy.fingerprint() for policy in ladder))
    return Served(
        name=folder.path.resolve().name,
        fingerprint=hashlib.sha256("\n".join(parts).encode()).hexdigest(),
        class_names=inputs.class_names,
        image_shape=inputs.image_shape,
        ladder=ladder,
        promises=tuple(None if certificate is None else str(certificate) for certificate in certificates),
        operations_K=operations_K,
    )


def _set_up(
    network: EarlyExitNet,
    ladder: Sequence[Policy],
    folder: RunFolder,
    backend: Literal["auto", Backend],
    device: torch.device,
) -> tuple[Runner, Plan, list[str]]:
    """The network in the form and under the plan in which it is served, and what there is to say of that."""
    certified = certified_form(ladder[0])
    if backend != "auto":
        forms = [certified if certified is not None and certified.backend == backend else Form(backend)]
    elif certified is not None:
        forms = [certified]
    else:
        forms = sorted(usual_forms(device), key=lambda form: FASTEST.index(form.backend))
    notes: list[str] = []
    for form in forms:
        try:
            runner = Runner(network, ladder[0], form=form, plan=Plan(), device=device)
            break
        except (UsageError, OfframpError) as error:
            if form == forms[-1]:
                raise
            notes.append(f"{form} is not used: {error}")
    plan = Plan()
    tuned, differs = adopt_file(runner, folder.bench, backend=backend)
    if tuned:
        plan = runner.stream_plan
    if differs:
        notes.append(f"{folder.bench} is not used ({'; '.join(differs)}).")
    if len(ladder) > 1:  # every exit is asked at which an image may leave on any rung
        lowest = [min(thresholds) for thresholds in zip(*(one.thresholds for one in ladder), strict=True)]
        runner.policy, plan = Policy(tuple(lowest), ladder[0].measure), Plan()
        runner = runner.under({1: plan})
    return runner, plan, notes
