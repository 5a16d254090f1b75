"""Every peer by name, in the order of the tables."""

from __future__ import annotations

import argparse

from fastneuron.peers.engines import FastneuronCython, FastneuronNumba, FastneuronNumpy
from fastneuron.peers.jax_peers import JaxJit, JaxScan
from fastneuron.peers.peer import Peer
from fastneuron.peers.plain_numpy import PlainNumpy
from fastneuron.peers.scikit_learn import Sklearn
from fastneuron.peers.torch_peers import Torch, TorchCompile

__all__ = ["PEERS", "parse_peers"]

#: Every peer, in the order of the table: ours, then the others.
PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        FastneuronNumba,
        FastneuronCython,
        FastneuronNumpy,
        Torch,
        TorchCompile,
        JaxJit,
        JaxScan,
        Sklearn,
        PlainNumpy,
    )
}


def parse_peers(text: str) -> list[str]:
    """Read names of peers, or "all"."""
    names = [name.strip() for name in text.split(",")]
    if names == ["all"]:
        return list(PEERS)
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"no peer {unknown[0]!r}: there are {', '.join(PEERS)}")
    return names
