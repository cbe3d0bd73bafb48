"""Larger caches for kernels, of whoever imports this before torch, as the commands of offramp have them."""

from offramp.cli.kernels import keep_kernels

keep_kernels()
