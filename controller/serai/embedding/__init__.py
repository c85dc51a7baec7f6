"""Embedding virtual networks onto substrates: pure functions on graphs, no I/O.

``solve`` embeds a request with a named algorithm and checks the mapping; ``Residual`` keeps the books;
``split`` divides a request between providers; ``register`` adds an algorithm of one's own.
"""

from serai.embedding.checker import check
from serai.embedding.joint import embed
from serai.embedding.model import (
    Infeasible,
    Mapping,
    NotFound,
    Path,
    Request,
    RequestLink,
    RequestNode,
    Result,
    Substrate,
    SubstrateLink,
    SubstrateNode,
)
from serai.embedding.registry import EmbeddingAlgorithm, names, register, require, solve
from serai.embedding.residual import Residual
from serai.embedding.split import Advertisement, Border, Crossing, Split, split

__all__ = [
    "Advertisement",
    "Border",
    "Crossing",
    "EmbeddingAlgorithm",
    "Infeasible",
    "Mapping",
    "NotFound",
    "Path",
    "Request",
    "RequestLink",
    "RequestNode",
    "Residual",
    "Result",
    "Split",
    "Substrate",
    "SubstrateLink",
    "SubstrateNode",
    "check",
    "embed",
    "names",
    "register",
    "require",
    "solve",
    "split",
]
