from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch

from offramp.data import Inputs
from offramp.export.levels import levels
from offramp.policy import Measure

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 40, 30, 3), dtype=np.uint8)
INPUTS = Inputs(tuple("0123456789"), (1, 16, 16), (0.3,), (0.32,), "central-fit")
MEASURES = [
    Measure(),
    Measure(temperatures=(0.7, 1.0, 1.6)),
    Measure("margin"),
    Measure("entropy"),
    Measure("patience"),
]


@pytest.mark.parametrize(
    ("name", "measure"),
    [*(("by hand", measure) for measure in MEASURES), ("msdnet", MEASURES[1]), ("ranet", MEASURES[0])],
    ids=str,
)
def test_each_exit_says_what_the_network_says(name: str, measure: Measure, trained: Callable) -> None:
    one = trained(name, name != "ranet")
    images = torch.stack([INPUTS.prepare(pixels)[0] for pixels in PIXELS])
    with torch.no_grad():
        logits_KBC = one.network(images)
    confidence_KB, labels_KB = measure.over(logits_KBC, 10)
    values = {"images": PIXELS}
    for k, model in enumerate(levels(one.parts, one.network, measure, INPUTS)):
        running = onnxruntime.InferenceSession(model.SerializeToString())
        wanted = {value.name: values[value.name] for value in running.get_inputs()}
        names = [value.name for value in running.get_outputs()]
        values |= dict(zip(names, running.run(None, wanted), strict=True))
        # Resizing may round a pixel otherwise.
        np.testing.assert_allclose(values["confidence"], confidence_KB[k], rtol=0, atol=0.02)
        assert values["label"].tolist() == labels_KB[k].tolist()
        probabilities = measure.log_probs(k, logits_KBC[k], 10).exp()
        np.testing.assert_allclose(values["probabilities"], probabilities, rtol=0, atol=0.02)
    assert k == one.network.num_exits - 1
    assert len(names) == 3  # the last gives nothing on
