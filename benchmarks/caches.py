"""The settings that the commands of offramp make before torch is loaded, for whoever imports this before torch."""

from offramp.commands.before_torch import before_torch

before_torch()
