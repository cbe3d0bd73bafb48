from pathlib import Path

from offramp import shipped
from offramp.data import Inputs
from offramp.files import RunFolder
from offramp.serve.card import Card
from offramp.storage import load_tensors, weights_hash


def test_a_shipped_network_names_the_data_that_it_was_trained_and_tested_on(tmp_path: Path) -> None:
    """Not the small part of them that is at hand, which its configuration names."""
    shipped.copy("fashion-mnist", tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    weights, inputs = weights_hash(load_tensors(folder.weights)[0]), Inputs.load(folder.input)
    card = Card.of(folder, folder.read_config(), inputs, weights)
    assert card.data == "fashion-mnist"
    assert card.accuracies is not None
    assert [label for _, label in card.samples] == list(range(10))
    assert Card.of(folder, folder.read_config(), inputs, "others").accuracies is None
