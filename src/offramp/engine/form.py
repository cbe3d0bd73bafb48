"""A network in the form in which it is run: batch norm folded, memory layout, precision, compiled or not.

B images, K exits, C outputs of an exit. The weights on disk and the network given are never touched: a program holds
copies of its own.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from offramp.devices import borrowed
from offramp.engine import kept
from offramp.engine.agreement import BF16, FLOAT32
from offramp.engine.images import check_images
from offramp.errors import OfframpError, UsageError
from offramp.export.tracing import reason
from offramp.fast import Planned
from offramp.fast.folding import fold
from offramp.fast.packing import can_pack, pack
from offramp.fast.tracing import anybody_hears
from offramp.fast.writes import check_skippable, why_as_it_is
from offramp.network import Carry, EarlyExitNet, as_carry


@dataclass(frozen=True)
class Form:
    """How the stages and exits of a network are run; autocast around a call changes nothing.

    Attributes:
        fold: Merge each batch norm into the convolution before it, where `fast.folding` can see both.
        channels_last: Keep maps with their channels innermost.
        bf16: Compute in bfloat16; what follows the logits is float32 all the same.
        compiled: Compile each stage and each exit with `torch.compile` (a minute or more at first use).
        packed: On a CPU with oneDNN (`can_pack`): each stage and each exit is a plan (`fast.Planned`) where its
            operations can be traced: batch norm is folded wherever it stands, weights are laid out once, not at every
            call, joined maps are written side by side. Elsewhere in `Sequential`s alone, and without plans where it is
            compiled as well. Where there is no oneDNN it changes nothing.
        backend: What runs them. `onnxruntime` folds and lays out by itself, in float32, so that the other fields are
            torch's alone: with it the first two count as off, and the others are refused.

    Raises:
        UsageError: An unknown backend; bf16, compiled or packed with another than torch.
    """

    fold: bool = True
    channels_last: bool = True
    bf16: bool = False
    compiled: bool = False
    packed: bool = False
    backend: Literal["torch", "onnxruntime"] = "torch"

    def __post_init__(self) -> None:
        if self.backend == "torch":
            return
        if self.backend != "onnxruntime":
            raise UsageError(f"backend must be torch or onnxruntime, not {self.backend!r}.")
        torchs_own = [name for name in ("bf16", "compiled", "packed") if getattr(self, name)]
        if torchs_own:
            raise UsageError(f"{' and '.join(torchs_own)} can be had with backend='torch' only, not with onnxruntime.")
        for name in ("fold", "channels_last"):  # one value for one thing: forms are compared and looked up
            object.__setattr__(self, name, False)

    @property
    def tolerance(self) -> float:
        """How far rounding may move a probability."""
        return BF16 if self.bf16 else FLOAT32

    def __str__(self) -> str:
        names = {
            "folded": self.fold,
            "channels-last": self.channels_last,
            "bf16": self.bf16,
            "compiled": self.compiled,
            "packed": self.packed,
            self.backend: self.backend != "torch",
        }
        return ", ".join(name for name, on in names.items() if on) or "as it is"


_parts = itertools.count()
PLAIN = Form(fold=False, channels_last=False)


def usual_forms(
    device: torch.device, *, bf16: bool = False, compiled: bool = False, onnxruntime: bool = True
) -> tuple[Form, ...]:
    """The forms worth trying on a device, in float32 and, if wanted, in bf16 and compiled.

    On a CPU, where it is installed, onnxruntime is one of them unless it is not wanted.
    """
    on_cpu = device.type == "cpu"
    forms = [*([Form(packed=True)] if on_cpu else []), Form(), Form(channels_last=False)]
    forms += [Form(backend="onnxruntime")] if onnxruntime and on_cpu and kept.there() else []
    forms += [Form(bf16=True, packed=on_cpu)] if bf16 else []
    forms += [Form(compiled=True)] if compiled else []
    forms += [Form(bf16=True, compiled=True)] if bf16 and compiled else []
    return tuple(forms)


class Program:
    """Stages and exits of a network as callables, in one form, on one device.

    Args:
        network: Stays as it is.
        form: See `Form`.
        device: Where to compute; the network's own device if None.

    Raises:
        UsageError: An exit that writes into a map that a later part reads: see `fast.writes`. Where the network does
            not say which images it is for, that is known once images have come, and `enter` raises it.
    """

    why_not: str | None = None
    """Why no part is run as a plan, where the form would have plans."""
    _untried: EarlyExitNet | None = None
    """A network that does not say which images it is for, until the first have come."""

    def __init__(self, network: EarlyExitNet, form: Form, device: torch.device | None = None) -> None:
        parameter = next(network.parameters(), torch.empty(0))
        self.form = form
        self.device = device or parameter.device
        self.dtype = torch.bfloat16 if form.bf16 else parameter.dtype
        self.num_exits, self.num_classes = network.num_exits, network.num_classes
        self.image_shape = network.image_shape
        twin = copy.deepcopy(network).eval().requires_grad_(False)
        if form.channels_last:
            twin = twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._reads = twin.reads
        if self.image_shape is None:
            self._untried = twin
        else:
            self._arrange(twin, self.image_shape)

    def _arrange(self, network: EarlyExitNet, image_shape: Sequence[int]) -> None:
        """Try the network, and make what is run of its parts.

        Where somebody writes into a map that others see, no part is run as a plan: there maps share memory.
        """
        parameter = next(network.parameters(), torch.empty(0))
        like = torch.empty(1, *image_shape, dtype=parameter.dtype, device=parameter.device)
        heard = anybody_hears((*network.stages.modules(), *network.exits.modules()))
        writes = "somebody listens to its modules" if heard else self._exactly(why_as_it_is, network, like)
        if writes is not None:
            self._exactly(check_skippable, network, image_shape)
        has_plans = self.form.packed and not self.form.compiled and can_pack(self.device, self.dtype)
        self.why_not = writes if has_plans else None
        made: Callable[[nn.Module], Callable[..., Any]] = self._made
        if has_plans and writes is None:
            made, network = self._planned, network.to(self.device)
        self._stages = [made(stage) for stage in network.stages]
        self._heads = [made(head) for head in network.exits]

    def _planned(self, part: nn.Module) -> Planned:
        """A stage or an exit as a plan, where its operations can be traced."""
        return Planned(part, dtype=self.dtype, fold=self.form.fold, otherwise=self._in_sequentials)

    def _made(self, part: nn.Module) -> Callable[..., Any]:
        """A stage or an exit in the form, without a plan."""
        part = self._in_sequentials(part)
        return compiled(part) if self.form.compiled else part

    def _in_sequentials(self, part: nn.Module) -> nn.Module:
        """Folded and packed as far as that can be seen without tracing what a part does."""
        if self.form.fold:
            fold(part)
        part = part.to(self.device, self.dtype)
        if self.form.packed and can_pack(self.device, self.dtype):
            pack(part)
        return part

    def enter(self, images_BCHW: Tensor) -> Carry:
        """The carry before the first stage.

        Raises:
            UsageError: Images of another shape than the network was made for, where it says so, or not of floats; at
                the first images, a network that the class refuses.
        """
        check_images(images_BCHW, self.image_shape)
        images_BCHW = borrowed(images_BCHW, self.device).to(self.dtype)
        if self.form.channels_last and images_BCHW.dim() == 4:
            images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        if self._untried is not None:
            with torch.inference_mode(False), torch.no_grad():  # else its weights would be that mode's
                self._arrange(self._untried, images_BCHW.shape[1:])
            self._untried = None
        return (images_BCHW,)

    def stage(self, k: int, carry: Carry) -> Carry:
        """The carry after stage k (from 0)."""
        return as_carry(self._exactly(self._stages[k], *carry))

    def head(self, k: int, carry: Carry) -> Tensor:
        """Logits `[B, C]` of exit k for the carry after stage k."""
        logits_BC: Tensor = self._exactly(self._heads[k], carry[self._reads[k]])
        return logits_BC

    @torch.inference_mode()
    def logits(self, images_BCHW: Tensor) -> Tensor:
        """Logits `[K, B, C]` of every exit: the whole network, no image leaving early."""
        logits_KBC: Tensor = self._exactly(self._logits, images_BCHW)
        return logits_KBC

    def _logits(self, images_BCHW: Tensor) -> Tensor:
        carry, logits = self.enter(images_BCHW), []
        for k in range(self.num_exits):
            carry = self.stage(k, carry)
            logits.append(self.head(k, carry))
        return torch.stack(logits)

    def _exactly(self, run: Callable[..., Any], *given: Any) -> Any:
        """What is run in the form's own precision, whatever autocast there is around."""
        kind = self.device.type
        if not torch.is_autocast_enabled(kind):
            return run(*given)
        with torch.autocast(kind, enabled=False):
            return run(*given)


def compiled(part: nn.Module) -> Callable[..., Any]:
    """A module compiled by torch, which does so when it is first called with one more kind of sizes.

    Raises:
        OfframpError: At such a call: torch cannot compile it, or has no compiler.
    """
    made: Callable[..., Any] = torch.compile(apart(part))

    def run(*given: Tensor) -> Any:
        try:
            return made(*given)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # seconds of import, done by now if it is one

            if not isinstance(error, TorchDynamoException):
                raise
            raise OfframpError(f"torch.compile fails: {reason(error)}") from error

    return run


def apart(part: nn.Module) -> Callable[..., Any]:
    """A function that calls a module and shares its code with no other.

    torch compiles a function's code up to eight times and then runs it as it is, in silence. `Sequential`s all have the
    same code: of a network of five exits the last parts would not be compiled. By a function's name torch remembers
    which sizes change from call to call, so the names differ too.
    """

    def run(*given: Tensor) -> Any:
        return part(*given)

    run.__code__ = run.__code__.replace(co_name=f"run_{next(_parts)}")
    return run
