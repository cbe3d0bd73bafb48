"""What goes over the wire, typed: JSON is written from these and openapi.json is made of them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from offramp.policy import NOBODY

REF = "#/components/schemas/{name}"  # in openapi.json
Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0)]


class Prediction(Struct, frozen=True):
    """The answer to one image."""

    label: Annotated[int, Meta(ge=0)]
    class_name: str
    confidence: float
    exit: Annotated[int, Meta(ge=1, description="The exit that answered, from 1.")]
    operations: Annotated[float, Meta(ge=0, description="Spent, as a share of the whole network's.")]
    rung: Annotated[int, Meta(ge=1, description="Of the ladder, from 1.")]
    promise: Annotated[str | None, Meta(description="What the rung's certificate says.")]
    in_time: Annotated[bool, Meta(description="False: time was up, and this is what the last exit reached says.")]
    queued_ms: Share
    computed_ms: Share
    fingerprint: Annotated[str, Meta(description="Of the weights and policies that answered.")]


class Failure(Struct, frozen=True):
    """Why there is no answer to one image of several."""

    error: str
    status: int


class Predictions(Struct, frozen=True):
    """One for each image, in their order."""

    # Of `Prediction` and `Failure`: msgspec writes both, but describes no union of two without a tag.
    predictions: Annotated[
        list[Any],
        Meta(extra_json_schema={"items": {"anyOf": [{"$ref": REF.format(name=n)} for n in ("Prediction", "Failure")]}}),
    ]


class Error(Struct, frozen=True):
    """One plain line."""

    error: str


class Images(Struct, frozen=True, forbid_unknown_fields=True):
    """Image files in base64."""

    images: Annotated[list[bytes], Meta(min_length=1)]


class ClassProbability(Struct, frozen=True):
    """One of an exit's likeliest classes."""

    label: int
    class_name: str
    probability: float


class ExitEvent(Struct, frozen=True):
    """What one exit says."""

    exit: Count
    label: int
    class_name: str
    confidence: float
    threshold: Annotated[
        float | None, Meta(description="To leave here; null where no image may, and at the last exit.")
    ]
    top: list[ClassProbability]
    operations: Share
    leaves: Annotated[bool, Meta(description="Whether this exit answers.")]


class Rung(Struct, frozen=True):
    """A policy of the ladder."""

    rung: Count
    thresholds: Annotated[
        list[float | None],
        Meta(description="Per exit; null where no image leaves, and at the last exit, where all do."),
    ]
    promise: str | None
    risk: Annotated[float | None, Meta(description="The certified bound of its promise, as a share.")]


class Model(Struct, frozen=True):
    """The card of what is served."""

    name: str
    fingerprint: str
    class_names: list[str]
    exits: Count
    image_shape: Annotated[list[int], Meta(min_length=3, max_length=3)]
    measure: Annotated[str, Meta(description="What confidence is: softmax, margin, entropy or patience.")]
    operations: Annotated[list[float], Meta(description="Of an image that leaves at each exit, as a share.")]
    ladder: list[Rung]
    accuracies: Annotated[list[float] | None, Meta(description="Of each exit on test images, in per cent.")]
    data: Annotated[str | None, Meta(description="What it was trained on.")]
    certificate: Annotated[str | None, Meta(description="In words.")]


class Sample(Struct, frozen=True):
    """An image file that came with the run."""

    url: str
    label: int | None


class Samples(Struct, frozen=True):
    """All of them."""

    samples: list[Sample]


class Health(Struct, frozen=True):
    """How the server stands."""

    status: Literal["alive", "ready", "not ready"]
    reason: str | None = None


class Reloaded(Struct, frozen=True):
    """What is served now."""

    fingerprint: str


encode = msgspec.json.Encoder().encode


def threshold_of(value: float) -> float | None:
    """A threshold as it is written: null where no image leaves."""
    return None if value >= NOBODY else value
