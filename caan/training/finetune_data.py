"""The data of a fine-tuning: which videos, their decoded images, and batches of these.

Legend: B images, V held-out videos, K emotions.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from caan import storage
from caan.arrow import image_stack
from caan.datasets.splits import hold_out, shuffle_key
from caan.errors import InputError
from caan.extraction.images import IMAGE_SIZE
from caan.features.leakage import SeenVideos, seen_of
from caan.outputs.plan import check_manifest
from caan.schema import label_set_of

KEPT_SCHEMA = pa.schema(
    [
        ("segment_id", pa.string()),
        ("video_id", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("pictures", pa.list_(pa.large_binary())),
    ]
)
"""A row per segment while a backbone is fine-tuned: uint8 RGB images, 224x224x3."""


class Numbers(NamedTuple):
    """A video and its emotion as numbers."""

    video: int
    """Place of the video among those that it was numbered with."""
    label: int
    """Place of its emotion in the label set."""


@dataclass(frozen=True, kw_only=True)
class FinetuneVideos:
    """The videos that a backbone is fine-tuned on."""

    rows: pa.Table
    """Manifest rows of training and held-out videos, in an order that mixes the labels."""
    label_set: tuple[str, ...]
    """Their emotions."""
    seen: SeenVideos
    """Which of them train, and which are held out."""

    def numbers(self, ids: tuple[str, ...]) -> dict[str, Numbers]:
        """The numbers of each of these videos, by video id."""
        ids_of_rows, labels_of_rows = (self.rows[n].to_pylist() for n in ("video_id", "label"))
        labels = dict(zip(ids_of_rows, labels_of_rows, strict=True))
        return {
            video_id: Numbers(number, self.label_set.index(labels[video_id]))
            for number, video_id in enumerate(ids)
        }


def read_videos(
    manifest_uri: str, *, split: str, validation_fraction: float, seed: int
) -> FinetuneVideos:
    """Read a manifest and divide its labelled videos into training and held-out ones.

    The training videos are those of `split`, or all where the manifest names no splits. Its split
    `val` is held out; without one, `validation_fraction` of the training videos.

    Raises:
        InputError: no labels, no such split, or fewer than two emotions.
    """
    table = storage.read_table(manifest_uri)
    manifest = check_manifest(table, manifest_uri)
    rows: list[Mapping[str, Any]] = [row for row in manifest.to_pylist() if row["label"]]
    if not rows:
        raise InputError(
            f"manifest `{manifest_uri}` has no labels: put videos into folders named after their "
            "emotions, or give a list with a column `label`."
        )
    splits = {row["split"] for row in rows if row["split"]}
    if splits and split not in splits:
        raise InputError(
            f"no labelled video has the split `{split}`; the manifest has "
            f"{', '.join(sorted(splits))}."
        )
    train = [row for row in rows if not splits or row["split"] == split]
    if "val" in splits and split != "val":
        held = [row for row in rows if row["split"] == "val"]
    else:
        train, held = hold_out(train, fraction=validation_fraction, seed=seed)
    label_set = label_set_of([row["label"] for row in train])
    if len(label_set) < 2:
        raise InputError(f"all training videos are `{label_set[0]}`: give two emotions or more.")
    held = [row for row in held if row["label"] in label_set]
    mixed = sorted(train + held, key=lambda row: shuffle_key(row["video_id"], seed))
    return FinetuneVideos(
        rows=pa.Table.from_pylist(mixed, schema=manifest.schema).replace_schema_metadata(
            table.schema.metadata
        ),
        label_set=label_set,
        seen=seen_of(train, held),
    )


class PictureKeeper:
    """Keep the images of one modality: the last stage of the decoding before fine-tuning."""

    def __init__(
        self, modality: str, fps: float, device: str, batch_size: int, num_threads: int
    ) -> None:
        self.column = "faces" if modality == "face" else "frames"
        self.fps = fps
        self.counts: dict[str, float] = {}

    def take_counts(self) -> dict[str, float]:
        """Segments, frames and images since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def __call__(self, table: pa.Table) -> pa.Table:
        """IMAGES_SCHEMA -> KEPT_SCHEMA, one row for each."""
        kept = [
            [item["picture"] for item in items if item["picture"] is not None]
            for items in table[self.column].to_pylist()
        ]
        num_frames = sum(len(frames) for frames in table["frames"])
        self.counts = {
            "segments": table.num_rows,
            "frames": num_frames,
            "pictures": sum(map(len, kept)),
            "video_seconds": num_frames / self.fps,
        }
        columns: list[Any] = [table[name] for name in KEPT_SCHEMA.names if name != "pictures"]
        columns.append(pa.array(kept, KEPT_SCHEMA.field("pictures").type))
        return pa.table(columns, schema=KEPT_SCHEMA)


def count_pictures(
    tables: Iterable[pa.Table],
    train: Mapping[str, Numbers],
    held: Mapping[str, Numbers],
    num_emotions: int,
) -> tuple[np.ndarray, int]:
    """Training images of each emotion, int64 [K], and the number of held-out images.

    `tables` have the columns `video_id` and `pictures` of KEPT_SCHEMA.
    """
    counts_K = np.zeros(num_emotions, np.int64)
    num_held = 0
    for table in tables:
        video_ids = table["video_id"].to_pylist()
        counts = pc.list_value_length(table["pictures"]).to_pylist()
        for video_id, count in zip(video_ids, counts, strict=True):
            if video_id in train:
                counts_K[train[video_id].label] += count
            elif video_id in held:
                num_held += count
    return counts_K, num_held


def single_images(table: pa.Table, *, numbers: Mapping[str, Numbers]) -> pa.Table:
    """KEPT_SCHEMA -> a row per image: `picture`, number of its `video`, `label` number.

    Videos that `numbers` does not name are left out.
    """
    wanted = [video_id in numbers for video_id in table["video_id"].to_pylist()]
    table = table.filter(pa.array(wanted, pa.bool_())).combine_chunks()
    found = np.array([numbers[v] for v in table["video_id"].to_pylist()], np.int64).reshape(-1, 2)
    segment_B = pc.list_parent_indices(table["pictures"]).to_numpy()
    return pa.table(
        {
            "video": pa.array(found[segment_B, 0], pa.int64()),
            "label": pa.array(found[segment_B, 1], pa.int64()),
            "picture": pc.list_flatten(table["pictures"]),
        }
    )


def read_pictures(table: pa.Table, *, numbers: Mapping[str, Numbers]) -> pa.Table:
    """Read the files of KEPT_SCHEMA that the column `file` names; give their `single_images`."""
    columns = ["video_id", "pictures"]
    kept = [storage.read_table(file, columns) for file in table["file"].to_pylist()]
    return single_images(pa.concat_tables(kept), numbers=numbers)


def picture_batch(table: pa.Table) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 [B, 224, 224, 3], label numbers [B] and video numbers [B] of single ones."""
    stack = image_stack(table["picture"].combine_chunks(), IMAGE_SIZE)
    label_B = torch.from_numpy(table["label"].to_numpy().copy())
    video_B = torch.from_numpy(table["video"].to_numpy().copy())
    return torch.from_numpy(stack.copy()), label_B, video_B


def rows_of_worker(
    tables: Iterable[pa.Table], column: str, rank: int, world_size: int
) -> Iterator[pa.Table]:
    """Share out, by the number in `column`, the rows of tables that all workers read in full."""
    for table in tables:
        own = table.filter(pa.array(table[column].to_numpy() % world_size == rank))
        if own.num_rows:
            yield own
