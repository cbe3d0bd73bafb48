"""A network in 8 bits, for `offramp export --int8`."""

from collections.abc import Callable

from offramp import export as files
from offramp.commands.sample import pool
from offramp.data import Parts
from offramp.network import EarlyExitNet
from offramp.policy import Policy

CALIBRATED_ON = 256  # images


def in_int8(
    network: EarlyExitNet,
    policy: Policy | None,
    image_shape: tuple[int, int, int],
    data: Parts,
    note: Callable[[str], None],
) -> tuple[files.Parts, files.Int8, Policy | None]:
    """The parts in int8, what that costs on the test set, and the policy, without what holds for float32 only."""
    calibration = data.val.search if data.val.splits() else data.train
    note(f"Calibrating int8 on {calibration.name}, measuring it on {data.test.name}.")
    whole = files.parts(network, image_shape)
    small = files.quantized(network, whole, pool(calibration, CALIBRATED_ON).images_SCHW)
    measured = files.compared(network, whole, small, policy, data.test)
    bare = None if policy is None else files.uncertified(policy)
    if bare != policy:
        note("The certificate is of float32's answers and does not pass on to int8.")
    return small, measured, bare
