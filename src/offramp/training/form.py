"""How a network is run in training: as it is, or compiled by `torch.compile`.

K exits, B images here, C outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from offramp.costs import cost
from offramp.errors import UsageError, first_line
from offramp.graphs.random_state import random_state_kept
from offramp.network import EarlyExitNet, has_hooks
from offramp.terminal import duration_in_words
from offramp.training.job import Job

# What `auto` estimates with: of a CPU with two cores, where compiling and computing both get faster with more.
COMPILING = 1.0  # seconds for each weight of a convolution or a product
MULTIPLY_ADDS = {"float32": 2.7e10, "bf16": 4e10}  # a second, of a plain step
SAVING = {"float32": 0.2, "bf16": 0.35}  # share of a plain step
WORTH = 2  # times the seconds of compiling that have to be saved: all of it is an estimate


@dataclass(frozen=True)
class Form:
    """How a run is trained: `plain`, module by module, or `compiled` (see `Compiled`), with what to say of it.

    Where a form that the user named cannot be had, that is an error.
    """

    name: Literal["plain", "compiled"]
    message: str | None = None
    is_asked_for: bool = False

    def checked(self) -> "Form":
        """The same, or plain where nothing can be compiled here."""
        if self.name == "plain":
            return self
        why_not = why_no_compiler()
        if why_not is None:
            return self
        if self.is_asked_for:
            raise UsageError(f"Form compiled: torch cannot compile here ({why_not}). Install g++, or take form plain.")
        return Form("plain", f"The network is trained in form plain: torch cannot compile here ({why_not}).")


def form_of(job: Job, device: torch.device, *, heads_alone: bool = False) -> Form:
    """The form of a run; `auto` is decided by its configuration alone, so that a run that goes on has the same."""
    wanted, rule = job.config.form, type(job.rule)
    if wanted == "plain":
        return Form("plain")
    if rule.needs_plain:
        message = f"{rule.__name__} trains the network as it is; form {wanted} has no effect."
        return Form("plain", message if wanted == "compiled" else None)
    if wanted == "compiled":
        return Form("compiled", "Compiling the training step; the first step takes minutes.", is_asked_for=True)
    if heads_alone or job.config.freeze_trunk or not _has_known_modules(job.network):
        return Form("plain")
    if device.type != "cpu":
        return Form("plain", f"Form auto is plain on {device.type}: compiled has not been tested there.")
    compiling, saved = estimate(job)
    if saved < WORTH * compiling:
        return Form("plain")
    about = f"about {duration_in_words(compiling)}, saves about {duration_in_words(saved)}"
    return Form("compiled", f"Compiling the training step: {about} (--form plain trains without).")


def estimate(job: Job) -> tuple[float, float]:
    """Seconds that compiling takes on a CPU with two cores, and seconds that it saves in the whole run."""
    config, train = job.config, job.train
    multiply_adds = 3 * cost(job.network, train.image_shape).exits[-1].multiply_adds * len(train) * config.epochs
    compiling = COMPILING * sum(parameter.dim() > 1 for parameter in job.network.parameters())
    return compiling, SAVING[config.precision] * multiply_adds / MULTIPLY_ADDS[config.precision]


def _has_known_modules(network: EarlyExitNet) -> bool:
    """Whether all modules are torch's or offramp's own: others may do at each call what makes a compiler begin anew."""
    homes = (type(module).__module__.split(".") for module in network.modules() if type(module) is not EarlyExitNet)
    return all(home[:2] in (["torch", "nn"], ["offramp", "backbones"]) for home in homes)


def why_no_compiler() -> str | None:
    """Why nothing can be compiled here, found by compiling something small; None where it can."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second to load

    def small(x: Tensor) -> Tensor:
        return x.relu().sum()

    x = torch.ones(8, requires_grad=True)
    try:
        torch.autograd.grad(torch.compile(small)(x), x)
    except TorchDynamoException as error:
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    cause = getattr(error, "inner_exception", error)  # of what a compiler raised
    return f"{type(cause).__name__}: {first_line(cause)}"


class Compiled:
    """A network compiled by `torch.compile` for training steps on full batches.

    With another number of images, in evaluation mode, without gradients, and where modules have hooks, which what is
    compiled might pass by, the network is run as it is: nothing is compiled for the last batch of an epoch.

    `batch_size` counts the images of a full batch in this process. A network that cannot be compiled is run as it is
    from then on, unless that was asked for: an error in the first call.
    """

    def __init__(
        self, network: EarlyExitNet, batch_size: int, log: Callable[[str], None], *, is_asked_for: bool = True
    ) -> None:
        self.network, self.batch_size, self.log, self.is_asked_for = network, batch_size, log, is_asked_for
        # Not mode reduce-overhead on a GPU: what its graphs give is overwritten by their next run, gradients included.
        self._compiled: Callable[[Tensor], Tensor] = torch.compile(network, dynamic=False)
        self._is_tried = self._has_said = False

    def __call__(self, images: Tensor) -> Tensor:
        """Logits `[K, B, C]` for images `[B, channels, height, width]`."""
        network = self.network
        run: Callable[[Tensor], Tensor] = network
        if len(images) == self.batch_size and network.training and torch.is_grad_enabled() and not self._is_watched():
            if not self._is_tried:
                self._try(images)
            run = self._compiled
        return run(images)

    def _is_watched(self) -> bool:
        """Whether any module has hooks; the first time that is said."""
        hooked = bool(nn.modules.module._has_any_global_hook()) or any(  # type: ignore[no-untyped-call]
            has_hooks(m) or m._backward_hooks or m._backward_pre_hooks for m in self.network.modules()
        )
        if hooked and not self._has_said:
            self._has_said = True
            self.log("Modules of the network have hooks, so it is run as it is, not compiled.")
        return hooked

    def _try(self, images: Tensor) -> None:
        """Compile both passes: what fails, fails here. Statistics, gradients and random numbers stay as they are."""
        from torch._dynamo.exc import TorchDynamoException

        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        before = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        try:
            with random_state_kept():
                torch.autograd.grad(self._compiled(images).sum(), parameters, allow_unused=True)
        except TorchDynamoException as error:
            reason = f"torch cannot compile the network ({_first_line(error)})."
            if self.is_asked_for:
                raise UsageError(f"{reason} Train in form plain, in another folder.") from error
            self._compiled = self.network
            self.log(f"It is trained in form plain: {reason}")
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
        self._is_tried = True
