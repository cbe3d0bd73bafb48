"""Everything that reads a model's code as a graph of `torch.fx`: traced, run node by node, cut, pruned and folded.

One tracer (`tracer`), one way to run a graph (`interpreter`), one list of what changes a tensor in place (`in_place`).
It knows `EarlyExitNet`, and no backbone.
"""
