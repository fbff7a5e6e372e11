"""Whole outputs of extract and label, written without Ray."""

import numpy as np
import pyarrow as pa

from caan import config, storage
from caan.outputs import layout
from caan.outputs.forget import counts_of
from caan.outputs.log import LogWriter
from caan.outputs.plan import plan, segments_of
from caan.schema import (
    FRAME_SCORES_SCHEMA,
    LABELS_SCHEMA,
    MANIFEST_SCHEMA,
    WINDOWS_SCHEMA,
    features_schema,
    segment_scores_schema,
    table_of,
)

VIDEOS = ("aaaa", "bbbb", "cccc")
FAILED = "cccc"


def segment_row(request, schema):
    """What the stages write of a segment: one face per frame, or a failure of video `cccc`."""
    row = {k: request[k] for k in ("segment_id", "video_id", "start_seconds", "end_seconds")}
    row |= {"frames": [], "faces": []}
    if request["video_id"] == FAILED:
        return row | {"status": "timed_out", "error": "killed after 300 seconds"}

    def item(column, k):
        types = schema.field(column).type.value_type
        known = {"frame_index": k, "pts_seconds": k / 2.0, "box": [0, 0, 9, 9], "score": 1.0}
        known |= {"raw_score": 0.5, "blind_raw_score": 0.5}
        return {
            part.name: known.get(part.name, [0] * getattr(part.type, "list_size", 0))
            if part.name != "logits"
            else [0.0, 1.0]
            for part in types
        }

    indices = range(request["first_index"], request["first_index"] + request["num_frames"])
    row |= {name: [item(name, k) for k in indices] for name in ("frames", "faces")}
    return row | {"status": "ok", "decoder": "pyav"}


def write_output(output: str, job: str = "extract") -> str:
    """An output of extract or label as the jobs leave it, of three videos in six segments."""
    videos = [
        {"video_id": v, "uri": f"/{v}.mp4", "duration_seconds": 4.0, "status": "ok"} for v in VIDEOS
    ]
    manifest = table_of(videos, MANIFEST_SCHEMA)
    storage.write_table(manifest, storage.join(output, "manifest.parquet"))
    planned = plan(manifest, fps=2.0, segment_frames=4)
    units = planned.units(np.ones(6, bool), 1).to_pylist()
    requests = [request for unit in units for request in segments_of(unit, 2.0, 4)]
    name = {"extract": "features", "label": "segment_scores"}[job]
    schema = features_schema(3, 5) if job == "extract" else segment_scores_schema(3, 2, 4)
    table = table_of([segment_row(r, schema) for r in requests], schema)
    of = {"fps": 2.0, "segment_frames": 4}
    layout.begin_record(output, of, config.fingerprint(of))
    writer = LogWriter(output, "a test")
    receipts = [layout.write_rows(table.slice(0, 3), output, name)]
    writer.commit(receipts[0])
    receipts += [layout.write_rows(table.slice(n, 1), output, name) for n in (4, 3)]
    writer.commit(pa.concat_tables(receipts[1:]))
    writer.commit(layout.write_rows(table.slice(5), output, name))
    record = {
        "format": layout.FORMAT,
        "job": job,
        "is_complete": True,
        "fingerprint": config.fingerprint(of),
        "fingerprint_of": of,
        "identity": {"face_dim": 3, "context_dim": 5},
    }
    if job == "label":
        record |= {"label_set": ["anger", "joy"], "model_id": "m"}
        shared = {"person_id": "0", "probabilities": {"anger": 0.25, "joy": 0.75}}
        labels = [
            {"video_id": v, "is_main": True, "model_id": "m", "status": "ok", "label": "joy"}
            | shared
            for v in VIDEOS[:2]
        ] + [{"video_id": FAILED, "is_main": True, "status": "timed_out", "model_id": "m"}]
        record["pooling"] = {"window_seconds": 2.0}
        windows = [
            row | {"window_index": n, "start_seconds": 2.0 * n, "end_seconds": 2.0 * n + 2.0}
            for row in labels[:2]
            for n in range(2)
        ]
        storage.write_table(table_of(windows, WINDOWS_SCHEMA), output + "/windows/part-0.parquet")
        scores = [
            {"video_id": v, "frame_index": k, "pts_seconds": k / 2, "emotion_score": 0.125} | shared
            for v in VIDEOS[:2]
            for k in range(8)
        ]
        storage.write_table(table_of(labels, LABELS_SCHEMA), output + "/labels/part-0.parquet")
        storage.write_table(
            table_of(scores, FRAME_SCORES_SCHEMA), output + "/frame_scores/part-0.parquet"
        )
    storage.write_json(output + "/run.json", record | counts_of(output, record))
    return output
