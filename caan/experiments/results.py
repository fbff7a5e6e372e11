"""The results of all trials of a system, and the comparison of two systems.

Legend: S seeds, V test videos of all divisions end to end, B bootstrap samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from caan import metrics, storage
from caan.experiments.trials import TRIALS, Trial


@dataclass(frozen=True, kw_only=True)
class Results:
    """All trials of one system."""

    system: str
    """Its name in SYSTEMS."""
    records: list[dict[str, Any]]
    """The trials' records."""
    right_SV: np.ndarray
    """bool: whether each seed's label is right, by the system's own prediction rule."""

    def figures(self, rule: str = "") -> tuple[float, float, float]:
        """Mean accuracy, its standard deviation over seeds (nan for one), and mean UAR."""
        of_seed: dict[int, list[float]] = {}
        uars = []
        for record in self.records:
            found = record["rules"][rule or record["rule"]]
            of_seed.setdefault(record["seed"], []).append(found["accuracy"])
            uars.append(found["uar"])
        means = [float(np.mean(values)) for values in of_seed.values()]
        deviation = float(np.std(means, ddof=1)) if len(means) > 1 else float("nan")
        return float(np.mean(means)), deviation, float(np.mean(uars))


def read_results(output: str, trials: Sequence[Trial]) -> dict[str, Results]:
    """Read the trials' files; give the results of each system."""
    by_system: dict[str, list[Trial]] = {}
    for trial in trials:
        by_system.setdefault(trial.system, []).append(trial)
    results = {}
    for system, own in by_system.items():
        records = []
        right: dict[int, list[np.ndarray]] = {}
        for trial in own:
            base = storage.join(output, TRIALS, trial.name)
            record = storage.read_json(base + ".json")
            table = storage.read_table(base + ".parquet")
            hit = pc.equal(table[record["rule"]], table["truth"]).to_numpy()
            right.setdefault(trial.seed, []).append(hit)
            records.append(record)
        right_SV = np.stack([np.concatenate(parts) for parts in right.values()]).astype(bool)
        results[system] = Results(system=system, records=records, right_SV=right_SV)
    return results


def bootstrap(
    difference_SV: np.ndarray, *, num_samples: int = 2000, seed: int = 0
) -> metrics.Interval:
    """95% percentile interval of the mean of [S, V] over resampled seeds and videos.

    Source: our choice; both the videos and the seeds are samples. A video in the test part of
    several divisions counts as several videos, which makes the interval too narrow.
    """
    num_seeds, num_videos = difference_SV.shape
    rng = np.random.default_rng(seed)
    seeds_BS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), num_samples)
    means = []
    for seeds_S in seeds_BS:
        videos_V = rng.integers(0, num_videos, num_videos)
        means.append((seeds_S @ difference_SV)[videos_V].mean() / num_seeds)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def against(reference: Results, other: Results) -> dict[str, Any]:
    """Other minus reference: `difference`, its `interval`, and McNemar's p, median over seeds."""
    difference_SV = other.right_SV.astype(float) - reference.right_SV
    pairs = zip(other.right_SV, reference.right_SV, strict=True)
    return {
        "difference": float(difference_SV.mean()),
        "interval": bootstrap(difference_SV),
        "mcnemar_p": float(np.median([metrics.mcnemar_exact(a, b) for a, b in pairs])),
    }
