"""Embedding algorithms by name. Bring your own: any callable with `EmbeddingAlgorithm`'s signature will do.

Whatever an algorithm returns, `solve` checks independently before anybody relies on it.
"""

from __future__ import annotations

from typing import Protocol

from serai.embedding import breadth_first, checker, exact, greedy, joint, two_stage, vine
from serai.embedding.model import Infeasible, Mapping, NotFound, Request, Result, Substrate
from serai.errors import AlreadyExistsError, CapacityError, InternalError, NotFoundError

DEFAULT = "joint"


class EmbeddingAlgorithm(Protocol):
    """Places a request on what is free of a substrate; see `joint.embed` for the arguments."""

    def __call__(
        self, substrate: Substrate, request: Request, *, revisitation: bool, seed: int, time_limit: float
    ) -> Result:
        """Return a mapping, a proof that there is none, or neither; raise nothing for a hard request."""
        ...


_algorithms: dict[str, EmbeddingAlgorithm] = {
    "joint": joint.embed,
    "greedy": greedy.embed,
    "grc": two_stage.grc,
    "nrm": two_stage.nrm,
    "rw": two_stage.random_walk,
    "pl": two_stage.proximity,
    "nea": two_stage.essentiality,
    "rw-bfs": breadth_first.embed,
    "d-vine": vine.deterministic,
    "r-vine": vine.randomised,
    "exact": exact.embed,
}


def register(name: str, algorithm: EmbeddingAlgorithm) -> None:
    """Make an algorithm known. Raises AlreadyExistsError for a name that is taken."""
    if name in _algorithms:
        raise AlreadyExistsError(
            f"there is an embedding algorithm {name!r} already", hint="choose another name"
        )
    _algorithms[name] = algorithm


def names() -> tuple[str, ...]:
    """The algorithms that are known."""
    return tuple(sorted(_algorithms))


def algorithm(name: str) -> EmbeddingAlgorithm:
    """The algorithm of a name. Raises NotFoundError for an unknown one."""
    if name not in _algorithms:
        raise NotFoundError(f"there is no embedding algorithm {name!r}", hint=f"known: {', '.join(names())}")
    return _algorithms[name]


_named = algorithm  # `solve` has a parameter of that name


def solve(
    substrate: Substrate,
    request: Request,
    *,
    algorithm: str = DEFAULT,
    revisitation: bool = True,
    seed: int = 0,
    time_limit: float = 5.0,
) -> Mapping:
    """Embed with a named algorithm and check the mapping independently.

    Raises NotFoundError for an unknown algorithm; CapacityError with the reason EMBEDDING_INFEASIBLE (proved;
    metadata resource, element, asked, available) or EMBEDDING_NOT_FOUND (not proved: more time may help);
    InternalError for a mapping that fails the check.
    """
    result = _named(algorithm)(
        substrate, request, revisitation=revisitation, seed=seed, time_limit=time_limit
    )
    mapping = require(result)
    violations = checker.check(substrate, request, mapping, revisitation=revisitation)
    if violations:
        raise InternalError(
            f"the algorithm {algorithm!r} gave a wrong mapping: {'; '.join(violations)}", algorithm=algorithm
        )
    return mapping


def require(result: Result) -> Mapping:
    """The mapping. Raises CapacityError as `solve` does where there is none."""
    match result:
        case Infeasible():
            raise CapacityError(
                result.message,
                reason="EMBEDDING_INFEASIBLE",
                hint="ask for less, or free or add what is short",
                resource=result.resource,
                element=result.element,
                asked="" if result.asked is None else result.asked,
                available="" if result.available is None else result.available,
            )
        case NotFound():
            raise CapacityError(
                result.message,
                reason="EMBEDDING_NOT_FOUND",
                hint="it is not proved impossible: allow more time or another algorithm",
                steps=result.steps,
            )
        case _:
            return result
