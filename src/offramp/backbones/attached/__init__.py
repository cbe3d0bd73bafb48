"""Exits on models that have none: `attach` cuts any classifier that `torch.fx` can trace into stages."""

from offramp.backbones.attached.attaching import attach, sites_of
from offramp.graphs.sites import Site, Sites

__all__ = ["Site", "Sites", "attach", "sites_of"]
