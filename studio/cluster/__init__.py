"""Training on a Ray cluster: what leaves, what runs there, and what comes home.

A run is packed (`training.elsewhere`) onto storage that this machine and the cluster both reach,
and a Ray job trains it with the same generator of events as here. The two sides meet on that
storage only: events, checkpoints and the adapter come from there, wishes go there, so that either
side may be away for a while.
"""

from dataclasses import dataclass

DEVICE = "ray"
"""How a spec names the cluster as its device, and what its slots begin with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Which cluster trains, by its dashboard's address, and the storage that both sides reach."""

    address: str
    storage: str
