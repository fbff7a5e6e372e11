"""Files of the driver's node for the workers of every node: each node holds one copy."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ray
from filelock import FileLock

from jobs.runtime import cluster

CHUNK_BYTES = 64 << 20
"""Bytes of a file that travel as one object."""

WHOLE = "whole"
"""Name of the empty file that says that a copy is whole."""


@dataclass(frozen=True, kw_only=True)
class NodeFiles:
    """A folder on the driver's node, and its files as objects for workers on other nodes."""

    folder: Path
    """The folder on the driver's node."""
    node_id: str
    """That node."""
    name: str
    """Name of the copy on another node; no two runs share it."""
    chunks: dict[str, list[ray.ObjectRef]]
    """Parts of each file in order; empty on a cluster of one node."""


def share_files(folder: Path, name: str) -> NodeFiles:
    """Make the files of a folder ready for workers, a chunk in memory at a time."""
    chunks: dict[str, list[ray.ObjectRef]] = {}
    if cluster.num_nodes() > 1:
        for path in sorted(folder.iterdir()):
            with path.open("rb") as file:
                chunks[path.name] = [
                    ray.put(part) for part in iter(lambda: file.read(CHUNK_BYTES), b"")
                ]
    node = ray.get_runtime_context().get_node_id()
    return NodeFiles(folder=folder, node_id=node, name=name, chunks=chunks)


def local_folder(files: NodeFiles) -> Path:
    """The folder with these files on this node; the first worker of another node copies them."""
    if ray.get_runtime_context().get_node_id() == files.node_id:
        return files.folder
    copy = _copy_of(files)
    copy.mkdir(exist_ok=True)
    with FileLock(f"{copy}.lock"):
        if not (copy / WHOLE).exists():
            for name, parts in files.chunks.items():
                with (copy / name).open("wb") as file:
                    for part in parts:
                        file.write(ray.get(part))
            (copy / WHOLE).touch()
    return copy


def remove_copy(files: NodeFiles) -> None:
    """Remove this node's copy, if it has one: what another worker still maps stays readable."""
    if ray.get_runtime_context().get_node_id() != files.node_id:
        shutil.rmtree(_copy_of(files), ignore_errors=True)


def _copy_of(files: NodeFiles) -> Path:
    return Path(tempfile.gettempdir()) / f"caan-{os.getuid()}-{files.name}"
