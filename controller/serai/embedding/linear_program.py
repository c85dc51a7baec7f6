"""A linear or mixed-integer program, solved by HiGHS (the optional dependency `serai[exact]`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from serai.embedding.graph import Floats
from serai.errors import InternalError, UnavailableError


class Status(Enum):
    """How a solve ended. LIMIT: out of time, with or without values."""

    OPTIMAL = "optimal"
    INFEASIBLE = "infeasible"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Solved:
    """`values` per variable, None where nothing feasible was found; no solution costs less than `bound`."""

    status: Status
    values: Floats | None
    objective: float
    bound: float


@dataclass
class LinearProgram:
    """Minimise the cost of non-negative variables, each with an upper bound, under rows of linear bounds."""

    costs: list[float] = field(default_factory=list)
    uppers: list[float] = field(default_factory=list)
    integer: bool = False
    _starts: list[int] = field(default_factory=lambda: [0])
    _columns: list[int] = field(default_factory=list)
    _values: list[float] = field(default_factory=list)
    _lowers: list[float] = field(default_factory=list)
    _row_uppers: list[float] = field(default_factory=list)

    def variable(self, cost: float = 0.0, upper: float = 1.0) -> int:
        """A new variable between 0 and `upper`; its number."""
        self.costs.append(cost)
        self.uppers.append(upper)
        return len(self.costs) - 1

    def row(
        self,
        columns: Sequence[int],
        values: Sequence[float],
        lower: float = -np.inf,
        upper: float = np.inf,
    ) -> None:
        """Bound the sum of `values` times the variables `columns`, which must all differ."""
        self._columns += columns
        self._values += values
        self._starts.append(len(self._columns))
        self._lowers.append(lower)
        self._row_uppers.append(upper)

    def solve(self, *, seed: int, time_limit: float, start: Sequence[float] | None = None) -> Solved:
        """Solve on one thread, so that equal arguments give equal results unless time runs out.

        `start` is a feasible solution to begin with. Raises UnavailableError without HiGHS.
        """
        highspy = _highspy()
        solver = highspy.Highs()
        for name, value in (
            ("output_flag", False),
            ("threads", 1),
            ("random_seed", seed % 2**31),
            ("time_limit", max(0.0, time_limit)),
            ("mip_rel_gap", 1e-6),
        ):
            solver.setOptionValue(name, value)
        solver.passModel(self._model(highspy))
        if start is not None:
            initial = highspy.HighsSolution()
            initial.col_value = list(start)
            solver.setSolution(initial)
        solver.run()
        return self._result(highspy, solver)

    def _model(self, highspy: Any) -> Any:
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = len(self.costs), len(self._lowers)
        model.col_cost_ = np.array(self.costs)
        model.col_lower_, model.col_upper_ = np.zeros(len(self.costs)), np.array(self.uppers)
        model.row_lower_, model.row_upper_ = np.array(self._lowers), np.array(self._row_uppers)
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.array(self._starts)
        model.a_matrix_.index_ = np.array(self._columns)
        model.a_matrix_.value_ = np.array(self._values)
        if self.integer:
            model.integrality_ = [highspy.HighsVarType.kInteger] * len(self.costs)
        return model

    def _result(self, highspy: Any, solver: Any) -> Solved:
        found, info = solver.getModelStatus(), solver.getInfo()
        statuses = highspy.HighsModelStatus
        if found == statuses.kInfeasible:
            return Solved(Status.INFEASIBLE, None, np.inf, np.inf)
        if found not in (statuses.kOptimal, statuses.kTimeLimit):
            raise InternalError(f"HiGHS ended with {found}")
        feasible = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        values = np.array(solver.getSolution().col_value) if feasible else None
        status = Status.OPTIMAL if found == statuses.kOptimal else Status.LIMIT
        objective = float(info.objective_function_value) if feasible else np.inf
        optimal = objective if status is Status.OPTIMAL else -np.inf
        return Solved(status, values, objective, float(info.mip_dual_bound) if self.integer else optimal)


def _highspy() -> Any:
    try:
        import highspy  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise UnavailableError(
            "this embedding algorithm needs the solver HiGHS, which is not installed",
            hint="install it: pip install 'serai[exact]'",
        ) from error
    return highspy
