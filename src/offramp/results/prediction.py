"""What a network answers for one file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """What a network answers for one file.

    Attributes:
        label: The class, from 0.
        exit: The exit that answered, from 1.
        confidence: Its confidence, in the units of the policy's measure.
        operations: Operations spent, as a share of the whole network's with every exit, as in `offramp certify`.
    """

    file: str
    label: int
    class_name: str
    exit: int
    confidence: float
    operations: float
