"""Features as jobs.extract writes them, of vectors that tell emotions."""

from pathlib import Path

import numpy as np

from caan import schema, storage
from caan.outputs import layout
from caan.outputs.log import LogWriter


def write_features(
    folder: Path,
    labels: tuple[str, ...],
    *,
    num_videos: int = 40,
    num_frames: int = 3,
    dim: int = 12,
    signal: float = 2.0,
    segment_frames: int = 1000,
    files: int = 1,
    splits: tuple[str, ...] = ("train",),
    seed: int = 0,
) -> str:
    """Videos of each label in turn; long ones in segments that lie in several files."""
    rng = np.random.default_rng(seed)
    direction_KD = rng.normal(size=(len(labels), dim))
    direction_KD *= signal * np.sqrt(dim) / np.linalg.norm(direction_KD, axis=1, keepdims=True)
    rows, segments = [], []
    for number in range(num_videos):
        name, place = f"v{number}", number % len(labels)
        split = splits[number % len(splits)]
        rows.append(
            {"video_id": name, "uri": f"{name}.mp4", "label": labels[place], "split": split}
        )
        vectors_ND = rng.normal(size=(num_frames, dim)) + direction_KD[place]
        for start in range(0, num_frames, segment_frames):
            places = range(start, min(start + segment_frames, num_frames))
            segments.append(
                {
                    "segment_id": f"{name}-{start:08d}",
                    "video_id": name,
                    "status": "ok",
                    "frames": [
                        {"frame_index": i, "pts_seconds": i / 2, "context_vector": vectors_ND[i]}
                        for i in places
                    ],
                    "faces": [
                        {
                            "frame_index": i,
                            "box": [0, 0, 9, 9],
                            "score": 1,
                            "face_vector": vectors_ND[i],
                        }
                        for i in places
                    ],
                }
            )
    manifest = schema.table_of(rows, schema.MANIFEST_SCHEMA)
    storage.write_table(manifest, folder / "manifest.parquet")
    writer = LogWriter(str(folder), "a test")
    for number in range(files):
        table = schema.table_of(segments[number::files], schema.features_schema(dim, dim))
        writer.commit(layout.write_rows(table, str(folder), "features"))
    options = {
        "no_face": "drop",
        "face_backbone": "vggface",
        "context_backbone": "vgg16",
        "detector": "retinaface",
        "fps": 2.0,
        "face_policy": "main",
    }
    names = ("face_backbone", "context_backbone", "detector")
    record = {"format": layout.FORMAT, "job": "extract", "is_complete": True, "config": options}
    record["fingerprint"] = "f"
    record["identity"] = {name: options[name] for name in names}
    storage.write_json(folder / "run.json", record)
    return str(folder)
