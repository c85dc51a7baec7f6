"""Embedding algorithms side by side on the Waxman-100 setting of the Virne benchmark.

    make bench-embedding            (or: python -m bench.embedding --seeds 2 --algorithms joint grc)

Every algorithm gets the same instance files (bench/out/embedding/); every mapping is checked independently.
Writes bench/out/embedding.json after each step: `algorithms` (mean and standard deviation over the seeds, the
acceptance of each), `reproduction` (the seed-0 run beside the figures published for Virne), `gap` (to the
exact optimum) and `hidden_topology`. Seconds are of the embedding alone, without check and bookkeeping; on a
busy machine trust the CPU seconds (every algorithm runs on one thread).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.vne_gap import measure_gap
from bench.vne_hidden import measure_hidden
from bench.vne_instances import Instance, Setting, draw
from bench.vne_simulation import Outcome, simulate

from serai.embedding import EmbeddingAlgorithm, Request, Result, Substrate
from serai.embedding.breadth_first import embed_without_retry
from serai.embedding.registry import algorithm

OUT = Path(__file__).parent / "out"


@dataclass(frozen=True, slots=True)
class Entry:
    """An algorithm of the table; `published` is Virne's figure (Table 3, the run of seed 0)."""

    name: str
    time_limit: float = 1.0
    published: float | None = None

    @property
    def function(self) -> EmbeddingAlgorithm:
        return embed_without_retry if self.name == "rw-bfs, no retry" else algorithm(self.name)


ENTRIES = (
    Entry("joint"),
    Entry("grc", published=0.589),
    Entry("nrm", published=0.607),
    Entry("rw", published=0.601),
    Entry("pl", published=0.681),
    Entry("nea", published=0.640),
    Entry("rw-bfs, no retry", published=0.400),
    Entry("rw-bfs"),
    Entry("greedy", time_limit=0.3),
    Entry("d-vine", time_limit=5.0),
    Entry("r-vine", time_limit=5.0),
)


def instance_files(seeds: int) -> list[Path]:
    files = [OUT / "embedding" / f"waxman100-{seed}.json" for seed in range(seeds)]
    for seed, file in enumerate(files):
        draw(seed).save(file)
    return files


def run(entry: Entry, instance: Instance, requests: int | None) -> Outcome:
    def embedder(substrate: Substrate, request: Request, number: int) -> Result:
        return entry.function(
            substrate, request, revisitation=False, seed=number, time_limit=entry.time_limit
        )

    return simulate(instance, embedder, requests=requests)


def row(entry: Entry, outcomes: list[Outcome]) -> dict[str, Any]:
    acceptance = [outcome.acceptance for outcome in outcomes]
    return {
        "name": entry.name,
        "acceptance_mean": mean(acceptance),
        "acceptance_sd": stdev(acceptance) if len(acceptance) > 1 else 0.0,
        "revenue_to_cost": mean(outcome.revenue_to_cost for outcome in outcomes),
        "s_per_request": mean(mean(outcome.seconds) for outcome in outcomes),
        "cpu_s_per_request": mean(mean(outcome.cpu_seconds) for outcome in outcomes),
        "s_per_request_max": max(max(outcome.seconds) for outcome in outcomes),
        "acceptance": acceptance,
    }


def describe(entry: dict[str, Any]) -> str:
    return (
        f"{entry['name']:18} acceptance {entry['acceptance_mean']:.3f} +- {entry['acceptance_sd']:.3f}"
        f"  revenue/cost {entry['revenue_to_cost']:.3f}  {entry['s_per_request']:.4f} s/request"
    )


def reproduction(rows: list[dict[str, Any]]) -> list[dict[str, object]]:
    """The run of seed 0 beside Virne's."""
    published = {entry.name: entry.published for entry in ENTRIES}
    return [
        {"name": item["name"], "published": published[item["name"]], "seed_0": item["acceptance"][0]}
        for item in rows
        if published[item["name"]] is not None
    ]


def main() -> None:
    names = [entry.name for entry in ENTRIES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, help="only the first of each instance")
    parser.add_argument("--algorithms", nargs="*", default=names, choices=names, metavar="NAME")
    parser.add_argument("--skip", nargs="*", default=[], choices=["gap", "hidden"])
    parser.add_argument("--resume", action="store_true", help="keep what the file has and this run has not")
    parser.add_argument("--out", type=Path, default=OUT / "embedding.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    files = instance_files(options.seeds)
    report: dict[str, Any] = {}
    if options.resume and options.out.exists():
        report = json.loads(options.out.read_text())
    report |= {"setting": asdict(Setting()), "seeds": options.seeds}
    rows = {item["name"]: item for item in report.get("algorithms", [])}

    def save() -> None:
        report["algorithms"] = [rows[name] for name in names if name in rows]
        report["reproduction"] = reproduction(report["algorithms"])
        options.out.write_text(json.dumps(report, indent=2) + "\n")

    for entry in ENTRIES:
        if entry.name in options.algorithms:
            outcomes = [run(entry, Instance.load(file), options.requests) for file in files]
            rows[entry.name] = row(entry, outcomes)
            save()
            print(describe(rows[entry.name]), flush=True)
    if "gap" not in options.skip:
        report["gap"] = measure_gap(range(options.seeds))
        print(json.dumps(report["gap"], indent=1), flush=True)
    if "hidden" not in options.skip:
        instances = [Instance.load(file) for file in files]
        report["hidden_topology"] = measure_hidden(instances, requests=options.requests or 200)
        print(json.dumps(report["hidden_topology"], indent=1), flush=True)
    save()


if __name__ == "__main__":
    main()
