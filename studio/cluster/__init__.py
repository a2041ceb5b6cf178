"""Training on a Ray cluster: submit runs, follow them, fetch their results.

A run is packed (`training.transfer_run`) onto storage that this machine and the cluster both reach,
and a Ray job trains it with the same generator of events as here. The two sides communicate through
that storage only: events, checkpoints, the adapter and commands. Either side may be offline for a
while.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """A cluster: address of its dashboard, and the storage that both sides reach."""

    address: str
    storage: str
