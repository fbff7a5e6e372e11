"""Probe the headers of videos on Ray."""

import pyarrow as pa
import ray

from caan.extraction.probe import IndexProber
from caan.schema import MANIFEST_SCHEMA
from jobs.runtime import cluster, stages
from jobs.runtime.progress import Ticker

BLOCK_ROWS = 32
"""Videos that an actor probes per call."""


def probe_rows(manifest: pa.Table, num_actors: int) -> pa.Table:
    """The manifest's rows with what their files' headers say, sorted by uri.

    `num_actors` 0: one per core.
    """
    cluster.start()
    cluster.configure_data()
    num_blocks = -(-manifest.num_rows // BLOCK_ROWS)
    num_actors = num_actors or min(num_blocks, cluster.physical_cpus())
    monitor = stages.start_monitor("index")
    blocks = [manifest.slice(n * BLOCK_ROWS, BLOCK_ROWS) for n in range(num_blocks)]

    def line() -> str:
        totals, _ = ray.get(monitor.read.remote())
        done = int(totals.get("probe", {}).get("videos", 0))
        return f"{done}/{manifest.num_rows} files probed" if done else "starting workers"

    dataset = ray.data.from_arrow(blocks).map_batches(
        stages.Staged,
        fn_constructor_args=("probe", IndexProber, (), monitor),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        num_cpus=min(1.0, 2.0 / num_actors),
    )
    with Ticker(line):
        probed = ray.get(dataset.to_arrow_refs())
    table = pa.concat_tables(probed).cast(MANIFEST_SCHEMA).sort_by("uri")
    monitor.end.remote()
    return table
