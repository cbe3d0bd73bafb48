"""The contract between the engine and what runs a network: segments, and the whole straight to one exit.

B images, K exits, C outputs of an exit. A backend is a file that makes a `Program`; the engine, streams and tuning know
nothing else of it. Which rows go into a segment is theirs, how it runs is the backend's.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor

from offramp.checks import check_name
from offramp.choices import Backend, Precision
from offramp.devices import borrowed
from offramp.errors import UsageError
from offramp.network import Carry, EarlyExitNet
from offramp.policy import Policy
from offramp.runtime.agreement import BF16, FLOAT32, INT8
from offramp.runtime.images import check_images
from offramp.runtime.rows import Answers

Single = Callable[[Tensor], Answers]


@dataclass(frozen=True)
class Form:
    """What runs a network, and in which precision.

    Attributes:
        backend: `torch` anywhere; `onnxruntime` (extra `onnx`) and `openvino` (extra `openvino`) on a CPU.
        precision: `bf16`: computed in bfloat16, by torch and openvino; `int8`: weights and maps in 8 bits, by openvino
            and onnxruntime, with scales that `calibrate` has found. What follows the logits is float32 all the same.
    """

    backend: Backend = "torch"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check_name("backend", self.backend, get_args(Backend))
        check_name("precision", self.precision, get_args(Precision))
        lacks = {"onnxruntime": "bf16", "torch": "int8"}.get(self.backend)
        if self.precision == lacks:
            having = "openvino and torch have" if lacks == "bf16" else "openvino and onnxruntime have"
            raise UsageError(f"{self.backend} does not compute in {lacks}; {having} it.")

    @property
    def tolerance(self) -> float:
        """How far rounding may move a probability."""
        return {"float32": FLOAT32, "bf16": BF16, "int8": INT8}[self.precision]

    def __str__(self) -> str:
        return f"{self.backend}, {self.precision}"


def certified_form(policy: Policy) -> Form | None:
    """The one form whose answers a policy's certificate is of; None where any in float32 will do, or there is none."""
    name = policy.certified_form
    if name in (None, "float32"):
        return None
    backend, precision, *_ = [*str(name).split(", "), ""]
    return Form(backend, precision)  # type: ignore[arg-type]  # it checks them


def check_form(form: Form, policy: Policy) -> None:
    """Refuse a form that moves the answers that a policy's certificate is of."""
    wanted = certified_form(policy)
    if policy.certified_form is None or (wanted is None and form.precision == "float32") or form == wanted:
        return  # for int8, `check_scales` goes on
    way = f"float32 by any backend, or certify with --backend {form.backend} --precision {form.precision}"
    raise UsageError(
        f"The policy's certificate is of answers in {policy.certified_form}, and {form} moves some. Run it in "
        f"{way if wanted is None else wanted}."
    )


def check_scales(program: "Program", policy: Policy) -> None:
    """Refuse a network in int8 whose scales are others than those of the answers that a policy's certificate is of."""
    if policy.certified_form is not None and program.scales is not None and program.answers != policy.certified_form:
        raise UsageError(
            f"The policy's certificate is of answers in {policy.certified_form}, and the scales found on this machine "
            f"are {program.scales}. Certify again, or calibrate on the images that the certificate's were found on."
        )


class Program(ABC):
    """A network, run by a backend on a device, by default its own; the network given is never touched."""

    has_own_threads: ClassVar[bool] = False
    """Whether it computes in threads that are not torch's: see `quiet_torch`."""

    def __init__(self, network: EarlyExitNet, form: Form, device: torch.device | None) -> None:
        parameter = next(network.parameters(), torch.empty(0))
        self.form = form
        self.device = device or parameter.device
        self.dtype = torch.bfloat16 if form.precision == "bf16" else parameter.dtype
        self.scales: str | None = None
        """In int8: which scales, a hash of the files that hold them."""
        self.num_exits, self.num_classes = network.num_exits, network.num_classes
        self.image_shape = network.image_shape

    @property
    def answers(self) -> str:
        """Of which answers a certificate of this program's logits is: `float32` whatever the backend, or its form."""
        form = "float32" if self.form.precision == "float32" else str(self.form)
        return form if self.scales is None else f"{form}, {self.scales}"

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def enter(self, images_BCHW: Tensor) -> Carry:
        """The carry before the first stage; images that are not of floats, or of another shape, are refused."""
        check_images(images_BCHW, self.image_shape)
        return self._enter(borrowed(images_BCHW, self.device))

    @abstractmethod
    def _enter(self, images_BCHW: Tensor) -> Carry:
        """The same for images that were checked and are on the device."""

    @abstractmethod
    def segment(self, first: int, last: int, carry: Carry, *, head: bool = True) -> tuple[Tensor | None, Carry]:
        """Run stages `first` to `last` (from 0), and exit `last` if `head`, on the carry before, which `enter` begins.

        Returns:
            The exit's logits `[B, C]`, or None, and the carry after the last stage. Both belong to the caller.
        """

    @abstractmethod
    def straight(self, images_BCHW: Tensor, exit: int) -> Tensor:
        """Logits `[B, C]` of one exit (from 0), with no other head run: the network as if it had no other exits."""

    def single(self, policy: Policy, asks: tuple[int, ...]) -> Single | None:
        """What answers one image `[1, C, H, W]` under a policy without a pause between stages; None: only segments do.

        `asks` are the exits (from 0) whose heads run, the last one included. A confidence that is NaN says nothing of
        the label beside it.
        """
        return None

    @torch.inference_mode()
    def logits(self, images_BCHW: Tensor) -> Tensor:
        """Logits `[K, B, C]` of every exit: the whole network, no image leaving early."""
        carry, logits = self.enter(images_BCHW), []
        for k in range(self.num_exits):
            logits_BC, carry = self.segment(k, k, carry)
            assert logits_BC is not None
            logits.append(logits_BC)
        with torch.autocast(self.device.type, enabled=False):
            return torch.stack(logits)


@contextlib.contextmanager
def quiet_torch(program: Program) -> Iterator[None]:
    """Within it torch computes in one thread, where the program has threads of its own.

    torch's threads spin for a while after each operation that they share, be it the softmax of 32 images, and take the
    processor from the library's: about a third of all time on two cores (docs/LOG.md, 2026-11-30). The number of
    threads is one of the calling thread's settings, so others that use torch meanwhile notice nothing.
    """
    threads = torch.get_num_threads()
    if not program.has_own_threads or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
