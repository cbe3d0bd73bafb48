"""Every row at the paper's scale, written down by hand from the paper and from what its peers published.

Sections 3.5, 4 and 4.1 give lambda, alpha, epochs and batches; Table 2's WPN has its authors' settings for ImageNet.
Choices of ours: lambda of RANet and of Table 3, the threshold of Table 3, the smoothing of Table 8.
"""

import pytest
import torch

from offramp import backbones, objectives, rules
from offramp.config import Spec
from offramp.paper import experiments
from offramp.paper.scales import PAPER, POCKET
from offramp.paper.watching import plain

# [experiment | network | epochs, batch size, images held out]
# row | objective | rule, if not "standard" | the last three, if not those above, and the rate, if not 0.1
TABLE = """
[table1 | msdnet7-cifar100 | 300 64 0]
MSDNet | cross-entropy
WPN | cross-entropy | wpn epsilon=0.8 centre=col interval=1
Damping | damping strength=0.005
+ Power-sqrt | power-sqrt strength=0.005
+ Dynamic | dynamic strength=0.005 alpha=0.8
WPN, its own recipe | cross-entropy | wpn epsilon=0.8 centre=col interval=1 | 300 1024 0 0.8
WPN, twice the batch | cross-entropy | wpn epsilon=0.8 centre=col interval=1 | 300 128 0
Damping, λ rising with depth | damping strength=[0.000714,0.001429,0.002143,0.002857,0.003571,0.004286,0.005]

[table2 | msdnet5-imagenet | 100 256 0]
MSDNet | cross-entropy
WPN | cross-entropy | wpn epsilon=0.3 centre=mat interval=100
DFS | cross-entropy | dfs
Power-sqrt | power-sqrt strength=0.01
+ Dynamic | dynamic strength=0.01 alpha=0.3
WPN, its own recipe | cross-entropy | wpn epsilon=0.3 centre=mat interval=100 | 100 4096 0 0.8
WPN, twice the batch | cross-entropy | wpn epsilon=0.3 centre=mat interval=100 | 100 512 0
DFS, its own recipe | cross-entropy | dfs dropout=0.5
+ Dynamic, over the batch (mat) | dynamic strength=0.01 alpha=0.3 over=batch

[table3 | msdnet7-last-cifar100 | 300 64 0]
MSDNet last only (best epoch) | cross-entropy
MSDNet last only (last epoch) | cross-entropy
Threshold last only | discard-threshold threshold=0.95
Damping loss last only | damping strength=0.005

[table4 | msdnet7-cifar10 | 300 64 0]
MSDNet | cross-entropy
Meta-learning Early Exiting (WPN) | cross-entropy | wpn epsilon=0.8 centre=col interval=1
+ Power-sqrt | power-sqrt strength=0.075
+ Dynamic training | dynamic strength=0.075 alpha=0.8
WPN, its own recipe | cross-entropy | wpn epsilon=0.8 centre=col interval=1 | 300 1024 0 0.8
WPN, twice the batch | cross-entropy | wpn epsilon=0.8 centre=col interval=1 | 300 128 0

[table5 | msdnet7-cifar100 | 300 64 0]
Damping loss | damping strength=0.005
+ Power-sqrt | power-sqrt strength=0.005
+ Dynamic training | dynamic strength=0.005 alpha=0.8
Dynamic training with gradient | dynamic strength=0.005 alpha=0.8 with_gradient=True

[table6 | ranet6-cifar100 | 300 64 0]
RANet | cross-entropy
WPN | cross-entropy | wpn epsilon=0.8 centre=col interval=1
Ours (Power-sqrt) | power-sqrt strength=0.005
+ Dynamic training | dynamic strength=0.005 alpha=0.8
WPN, its own recipe | cross-entropy | wpn epsilon=0.8 centre=col interval=1 | 300 1024 0 0.8
WPN, twice the batch | cross-entropy | wpn epsilon=0.8 centre=col interval=1 | 300 128 0

[table7 | msdnet7-cifar100 | 300 64 0]
damping 0.005 | damping strength=0.005
damping 0.025 | damping strength=0.025
damping 0.05 | damping strength=0.05
damping 0.075 | damping strength=0.075
power-sqrt 0.005 | power-sqrt strength=0.005
power-sqrt 0.025 | power-sqrt strength=0.025
power-sqrt 0.05 | power-sqrt strength=0.05
power-sqrt 0.075 | power-sqrt strength=0.075

[table8 | msdnet7-cifar100 | 300 64 0]
MSDNet | cross-entropy
Label smoothing | label-smoothing smoothing=0.1
Power-sqrt | power-sqrt strength=0.005

[figure3 | msdnet7-last-cifar100 | 300 64 0]
70 % | discard-threshold threshold=0.7
75 % | discard-threshold threshold=0.75
80 % | discard-threshold threshold=0.80
85 % | discard-threshold threshold=0.85
90 % | discard-threshold threshold=0.90
95 % | discard-threshold threshold=0.95
100 % | cross-entropy

[figure4 | msdnet5-imagenet | 100 256 50000]
cross-entropy | cross-entropy
WPN | cross-entropy | wpn epsilon=0.3 centre=mat interval=100
WPN, its own recipe | cross-entropy | wpn epsilon=0.3 centre=mat interval=100 | 100 4096 50000 0.8
WPN, twice the batch | cross-entropy | wpn epsilon=0.3 centre=mat interval=100 | 100 512 50000
power-sqrt | power-sqrt strength=0.01
dynamic | dynamic strength=0.01 alpha=0.3

[league | msdnet7-cifar100 | 300 64 0]
cross-entropy | cross-entropy
damping | damping strength=0.005
damping, λ/√K | damping strength=0.005 per_sqrt_exits=True
damping, λ rising with depth | damping strength=[0.000714,0.001429,0.002143,0.002857,0.003571,0.004286,0.005]
power-sqrt | power-sqrt strength=0.005
dynamic | dynamic strength=0.005 alpha=0.8
dynamic, tanh (R3) | dynamic strength=0.005 alpha=0.8 normalisation=tanh
dynamic, tanh, in the root (R3, W3) | dynamic strength=0.005 alpha=0.8 normalisation=tanh applied_to=root
dynamic, tanh, on cross-entropy (R3, W1) | dynamic strength=0.005 alpha=0.8 normalisation=tanh applied_to=cross-entropy
dynamic, reversed | dynamic strength=0.005 alpha=0.8 reverse=True
dynamic, centred (R4) | dynamic strength=0.005 alpha=0.8 normalisation=centre
dynamic, centred and clipped (R4) | dynamic strength=0.005 alpha=0.8 normalisation=centre-clipped
label smoothing | label-smoothing smoothing=0.1
WPN | cross-entropy | wpn epsilon=0.8 centre=col interval=1
WPN, its own recipe | cross-entropy | wpn epsilon=0.8 centre=col interval=1 | 300 1024 0 0.8
WPN, twice the batch | cross-entropy | wpn epsilon=0.8 centre=col interval=1 | 300 128 0
DFS | cross-entropy | dfs
DFS, its own recipe | cross-entropy | dfs dropout=0.5 | 300 500 0
gradient equilibrium | cross-entropy | gradient-equilibrium
IMTA | cross-entropy | one-for-all share=0.1 temperature=1.0 reduction=sum
PCGrad | cross-entropy | pcgrad
CAGrad | cross-entropy | cagrad
Meta-GF | cross-entropy | meta-gf | 2400 64 0
CGT | cross-entropy | cgt
CGT, hard gate | cross-entropy | cgt gate=hard
CGT, weights sum to K | cross-entropy | cgt total=exits
CGT, hard gate, its own recipe | label-smoothing smoothing=0.1 | cgt gate=hard | 300 500 0
CGT, soft gate, its own recipe | label-smoothing smoothing=0.1 | cgt gate=soft | 300 500 0

[league-imagenet | msdnet5-imagenet | 100 256 50000]
cross-entropy | cross-entropy
damping | damping strength=0.01
damping, λ/√K | damping strength=0.01 per_sqrt_exits=True
damping, λ rising with depth | damping strength=[0.002,0.004,0.006,0.008,0.01]
power-sqrt | power-sqrt strength=0.01
dynamic | dynamic strength=0.01 alpha=0.3
dynamic, tanh (R3) | dynamic strength=0.01 alpha=0.3 normalisation=tanh
dynamic, tanh, in the root (R3, W3) | dynamic strength=0.01 alpha=0.3 normalisation=tanh applied_to=root
dynamic, tanh, on cross-entropy (R3, W1) | dynamic strength=0.01 alpha=0.3 normalisation=tanh applied_to=cross-entropy
dynamic, reversed | dynamic strength=0.01 alpha=0.3 reverse=True
dynamic, centred (R4) | dynamic strength=0.01 alpha=0.3 normalisation=centre
dynamic, centred and clipped (R4) | dynamic strength=0.01 alpha=0.3 normalisation=centre-clipped
label smoothing | label-smoothing smoothing=0.1
WPN | cross-entropy | wpn epsilon=0.3 centre=mat interval=100
WPN, its own recipe | cross-entropy | wpn epsilon=0.3 centre=mat interval=100 | 100 4096 50000 0.8
WPN, twice the batch | cross-entropy | wpn epsilon=0.3 centre=mat interval=100 | 100 512 50000
DFS | cross-entropy | dfs
DFS, its own recipe | cross-entropy | dfs dropout=0.5
gradient equilibrium | cross-entropy | gradient-equilibrium
IMTA | cross-entropy | one-for-all share=0.1 temperature=1.0 reduction=sum
PCGrad | cross-entropy | pcgrad
CAGrad | cross-entropy | cagrad
Meta-GF | cross-entropy | meta-gf | 600 256 50000
CGT | cross-entropy | cgt
CGT, hard gate | cross-entropy | cgt gate=hard
CGT, weights sum to K | cross-entropy | cgt total=exits
CGT, hard gate, its own recipe | label-smoothing smoothing=0.1 | cgt gate=hard
CGT, soft gate, its own recipe | label-smoothing smoothing=0.1 | cgt gate=soft
dynamic, over the batch (mat) | dynamic strength=0.01 alpha=0.3 over=batch
"""

USUAL = {  # what a row of the table does not say
    "damping": {"weighting": None, "per_sqrt_exits": False},
    "power-sqrt": {"weighting": None, "root": "sample"},
    "dynamic": {
        "form": "power-sqrt",
        "normalisation": "max",
        "over": "exits",
        "applied_to": "gradient",
        "reverse": False,
        "with_gradient": False,
    },
    "wpn": {"p": 0.75, "inputs": "loss", "hidden": 500, "layers": 1, "meta_lr": 1e-4, "meta_weight_decay": 1e-4},
    "dfs": {"ratio": 0.5, "head": "all", "dropout": 0.0},
    "meta-gf": {"auxiliary": 0.1, "eta_lr": 0.1, "kept": 0.9},
}


def in_full(words: str) -> Spec:
    spec = Spec.parse(words.split())
    return Spec(spec.name, {**USUAL.get(spec.name, {}), **spec.args})


def test_every_row_is_as_it_was_written_down() -> None:
    wanted = {}
    for line in filter(None, TABLE.splitlines()):
        if line.startswith("["):
            experiment, network, recipe = line.strip("[]").split(" | ")
            continue
        row, objective, *rest = line.split(" | ")
        wanted[experiment, row] = (network, objective, *rest, *("standard", recipe)[len(rest) :])
    rows = {(e.name, row.label): row for e in experiments(["all"], PAPER) for row in e.rows}
    assert list(rows) == list(wanted)
    for key, (network, objective, rule, recipe) in wanted.items():
        run, data = rows[key].run, plain(rows[key].run.data)
        assert rows[key].network == Spec(network), key
        assert data.source == Spec(network.split("-")[-1]), key
        rate = f" {run.training.lr}" if run.training.lr != 0.1 else ""
        assert f"{run.training.epochs} {data.batch_size} {data.holdout}{rate}" == recipe, key
        assert objectives.build(run.objective) == objectives.build(in_full(objective)), key
        teacher = f" teacher={run.rule.args['teacher']}" if rows[key].before else ""
        ours, theirs = rules.build(run.rule), rules.build(in_full(rule + teacher))
        assert (type(ours), ours.settings()) == (type(theirs), theirs.settings()), key


@pytest.mark.parametrize("of", ["cifar100", "ranet"])
def test_what_networks_of_equal_seed_share(of) -> None:
    """docs/reproduce.md says where damped networks begin otherwise: paired differences to undamped ones pair less."""
    begun = []
    for damping in (False, True):
        torch.manual_seed(0)
        network = backbones.build(POCKET[of].network, num_classes=10, image_shape=(1, 28, 28), damping=damping)
        begun.append({name: value for name, value in network.state_dict().items() if value.dim() == 4})
    other = {name for name, value in begun[0].items() if not torch.equal(value, begun[1][name])}
    assert {name.split(".")[1] for name in other if name.startswith("exits")} >= set("12345")
    assert any(name.startswith("stages") for name in other) == (of == "ranet")
