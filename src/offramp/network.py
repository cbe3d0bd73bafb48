"""An early-exiting network is a list of stages and a list of exits.

K exits, B images, N classes, C outputs of an exit (N, or N + 1 with the damping neuron).

Stage k maps a carry (a tuple of tensors, batch first) to the next carry; exit k reads one tensor of the carry and gives
logits. Nothing here, or anywhere else, knows what a backbone looks like inside.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn

from offramp import trust
from offramp.checks import check_whole
from offramp.config import Spec, build
from offramp.errors import UsageError

# The damping neuron's output at an exit that has none, where other exits do: its softmax is 0, and nothing becomes NaN.
NO_NEURON = -1e8

Carry = tuple[Tensor, ...]
# link(k, K, carry, reads) -> (what exit k sees, what stage k + 1 gets): values unchanged, gradients rerouted.
Link = Callable[[int, int, Carry, int], tuple[Tensor, Carry]]


def plain_link(k: int, K: int, carry: Carry, reads: int) -> tuple[Tensor, Carry]:
    """The link that changes nothing: the exit sees the map it reads, the next stage gets the whole carry."""
    return carry[reads], carry


def as_carry(outputs: Tensor | Carry) -> Carry:
    """What a stage gives, as a tuple."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


class Preprocessing(Protocol):
    """How images become a network's input: `offramp.data.Inputs`."""

    @property
    def mean(self) -> tuple[float, ...]: ...  # noqa: D102

    @property
    def std(self) -> tuple[float, ...]: ...  # noqa: D102

    def prepare(self, images: Any) -> Tensor: ...  # noqa: D102


class EarlyExitNet(nn.Module):
    """Stages and exits, run in turn.

    Args:
        stages: Modules called with the tensors of the carry as positional arguments (the first one with the images);
            each returns a tensor or a tuple of tensors, the next carry.
        exits: As many modules as stages; each maps one tensor of the carry to logits `[B, C]`.
        num_classes: N. Without it, read off the last Linear of the first exit.
        damping: Whether output N (the last) is the damping neuron (paper, Eq. 1).
        reads: Index into the carry of the tensor an exit reads, one for all or one per exit.
        image_shape: `(channels, height, width)` of the images it was made for, where known.

    Raises:
        UsageError: Stages, exits and `reads` that are not as many, no classes, a Linear at an exit's end with another
            number of outputs.
    """

    link: Link

    def __init__(
        self,
        stages: Iterable[nn.Module],
        exits: Iterable[nn.Module],
        *,
        num_classes: int | None = None,
        damping: bool = False,
        reads: int | Sequence[int] = -1,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.exits = nn.ModuleList(exits)
        if len(self.stages) != len(self.exits) or not self.exits:
            raise UsageError(
                f"A network needs as many exits as stages, at least one; found {len(self.stages)} stages "
                f"and {len(self.exits)} exits."
            )
        self.reads = (reads,) * self.num_exits if isinstance(reads, int) else tuple(reads)
        if len(self.reads) != self.num_exits:
            raise UsageError(f"`reads` names {len(self.reads)} tensors for {self.num_exits} exits.")
        self.num_classes = _classes_of(self.exits[0]) - damping if num_classes is None else num_classes
        self.damping = damping
        self._check_outputs()
        self.image_shape = image_shape
        self.link = plain_link
        self.spec: Spec | None = None  # how to build this network again; set by `builder`
        self.origin: dict[str, Any] | None = None  # where its trunk comes from, as JSON values; set by `attach`
        self.inputs: Preprocessing | None = None  # how an image becomes its input; set by `fit` and `offramp.load`

    def _check_outputs(self) -> None:
        check_whole("num_classes", self.num_classes, 1)
        neuron = " and the damping neuron" if self.damping else ""
        for k, head in enumerate(self.exits, 1):
            last = head[-1] if isinstance(head, nn.Sequential) and runs_in_turn(head) and len(head) else head
            if type(last) is nn.Linear and last.out_features != self.num_outputs:
                raise UsageError(
                    f"Exit {k} ends with {last.out_features} outputs, not {self.num_outputs} "
                    f"(num_classes={self.num_classes}{neuron})."
                )

    @property
    def num_exits(self) -> int:
        """K."""
        return len(self.exits)

    def shape_of_images(self, image_shape: Sequence[int] | None = None) -> tuple[int, int, int]:
        """`image_shape`, or that of the images it was made for; refused where neither is known."""
        shape = image_shape or self.image_shape
        if shape is None:
            raise UsageError(
                "The network does not say which images it is made for; pass image_shape=(channels, height, width)."
            )
        return tuple(shape)  # type: ignore[return-value]

    @property
    def num_outputs(self) -> int:
        """C: the classes, and the damping neuron where there is one."""
        return self.num_classes + self.damping

    def preprocess(self, images: Any) -> Tensor:
        """Images as the network wants them: float32 `[B, channels, height, width]`, normalised as in training.

        Args:
            images: A path of an image file, an image (of Pillow; uint8 pixels `[H, W]`, `[H, W, 3]` or, of torch,
                `[C, H, W]`), or a list of these; one of them is a batch of one.

        Raises:
            UsageError: Something else, or a network that was not trained on images that say how they were prepared.
            OfframpError: A file that cannot be read.
        """
        if self.inputs is None:
            raise UsageError(
                "The network does not say how an image becomes its input. Those of offramp.load and offramp.fit do, if "
                "the run has an input.json; for another set network.inputs = offramp.data.Inputs(...)."
            )
        return self.inputs.prepare(images)

    def run_stage(self, k: int, carry: Carry) -> Carry:
        """The carry after stage k (from 0) for the carry after stage k - 1 (the images, for k = 0)."""
        return as_carry(self.stages[k](*carry))

    def run_exit(self, k: int, carry: Carry) -> Tensor:
        """Logits `[B, C]` of exit k (from 0) for the carry after stage k."""
        logits_BC: Tensor = self.exits[k](carry[self.reads[k]])
        return logits_BC

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[K, B, C]` of every exit for images `[B, channels, height, width]`."""
        return torch.stack(self.exit_logits(images))

    def exit_logits(self, images: Tensor) -> list[Tensor]:
        """The same, `[B, C]` for each exit: a gradient taken from one of them runs through no other exit."""
        last = self.num_exits - 1
        carry: Carry = (images,)
        logits = []
        for k, head in enumerate(self.exits):
            carry = self.run_stage(k, carry)
            link = self.link if k < last else plain_link
            seen, carry = link(k, self.num_exits, carry, self.reads[k])
            logits.append(head(seen))
        return logits

    def class_log_probs(self, logits_KBC: Tensor, *, renormalise: bool = False) -> Tensor:
        """See `class_log_probs`."""
        return class_log_probs(logits_KBC, self.num_classes, renormalise=renormalise)


def class_log_probs(logits_KBC: Tensor, num_classes: int, *, renormalise: bool = False) -> Tensor:
    """Log-probabilities `[..., N]` of the classes: the one way from logits `[..., C]` to anything else.

    The softmax runs over all C outputs (paper, Eq. 1) and the damping neuron's share is left out, so that the classes
    sum to 1 - F[N+1]: the neuron's mass is a natural "not sure". With `renormalise` the classes sum to 1 instead.
    Computed in float32 at least.
    """
    logits = logits_KBC.float() if logits_KBC.dtype in (torch.float16, torch.bfloat16) else logits_KBC
    if renormalise:
        return logits[..., :num_classes].log_softmax(-1)
    return logits.log_softmax(-1)[..., :num_classes]


M = TypeVar("M", bound=nn.Module)


def eval_twin(module: M) -> M:
    """A copy in evaluation mode, with the module's own weights and buffers of its own."""
    return copy.deepcopy(module, {id(p): p for p in module.parameters()}).eval()


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks read what a module is given or gives, so that it has to be called itself."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def runs_in_turn(module: nn.Module) -> bool:
    """Whether a module is a `Sequential` that does nothing but run what it holds, one after the other."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def last_linear(head: nn.Module) -> nn.Linear | None:
    """The Linear layer that an exit ends with; None where it has none."""
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    return linears[-1] if linears else None


def _classes_of(head: nn.Module) -> int:
    linear = last_linear(head)
    if linear is None:
        raise UsageError("The exits have no Linear layer to read the number of classes from; pass `num_classes`.")
    return linear.out_features


P = ParamSpec("P")


def builder(function: Callable[P, EarlyExitNet]) -> Callable[P, EarlyExitNet]:
    """Make a function that returns a network leave its recipe on it: import path and arguments, all JSON values."""

    @functools.wraps(function)
    def build_and_sign(*args: P.args, **kwargs: P.kwargs) -> EarlyExitNet:
        network = function(*args, **kwargs)
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name)
        network.spec = Spec.from_json(Spec(f"{function.__module__}:{function.__qualname__}", arguments).to_json())
        return network

    return build_and_sign


def rebuild(spec: Spec) -> EarlyExitNet:
    """The network that `spec` (found on a built one, or in a run's folder) describes, with fresh weights."""
    with trust.at_least_guarded():
        return with_exits(spec.name, build(spec, {}, "network"))


def with_exits(name: str, network: Any) -> EarlyExitNet:
    """What `name` gave, if that is a network with exits; refused if it is not, with the way out for a model."""
    if isinstance(network, EarlyExitNet):
        return network
    hint = (
        "; to put exits on it, name a function that returns offramp.backbones.attach(model, at=...), see docs/attach.md"
        if isinstance(network, nn.Module)
        else ""
    )
    raise UsageError(f"network {name!r} gives a {type(network).__name__}, not an offramp.EarlyExitNet{hint}.")
