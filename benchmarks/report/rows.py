"""What the page lists: a row per figure, by area."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.report import figures


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table."""

    what: str
    """What was measured."""
    record: str
    """Name of the record in benchmarks/results, without its ending."""
    command: str
    """Command that writes the record, after `python -m benchmarks.`."""
    figure: Callable[[figures.Record], str]
    """The figure, from the record or from its part."""
    part: str = ""
    """Key of the part of the record; empty: the whole record."""


CORPUS = "700 test videos composed of FER2013 test faces"
AREAS = {
    "Accuracy": [
        Row(
            what="starter face network on FER2013 test faces without disgust",
            record="starter",
            command="accuracy.starter --faces fer2013.parquet --recipe DIR",
            figure=figures.starter("test"),
        ),
        Row(
            what="the two halves of the starter, each on the validation faces it has not learned",
            record="starter",
            command="accuracy.starter --faces fer2013.parquet --recipe DIR",
            figure=figures.starter("val"),
        ),
        Row(
            what="the same validation faces under changes",
            record="starter",
            command="accuracy.starter --faces fer2013.parquet --recipe DIR",
            figure=figures.changes,
        ),
        Row(
            what=f"shipped starter head, attention against averaging; {CORPUS}, 3 frames/s",
            record="attention",
            command="accuracy.attention --corpus corpus --features features",
            figure=figures.attention,
        ),
        Row(
            what="the emotion scores of that head: area under the curve between kinds of frames",
            record="attention",
            command="accuracy.attention --corpus corpus --features features",
            figure=figures.areas,
        ),
        Row(
            what=f"the whole chain, RANDOM VGG weights, 1 frame/s; {CORPUS}; chance is 14.3%",
            record="composed",
            command="accuracy.composed --corpus corpus --work work --fps 1",
            figure=figures.composed,
        ),
        Row(
            what="IDF1 of tracks and people in a composed hour at 1 frame/s",
            record="people",
            command="accuracy.people --clips CLIPS --video people.mp4",
            figure=figures.people(1.0),
        ),
        Row(
            what="the same at 5 frames/s",
            record="people",
            command="accuracy.people --clips CLIPS --video people.mp4",
            figure=figures.people(5.0),
        ),
    ],
    "Speed of one stage": [
        Row(
            what="decoding 720p H.264 with B-frames: source frames per CPU second over bare PyAV; "
            "the same images from every way",
            record="decode",
            command="speed.decode",
            figure=figures.decode,
        ),
        Row(
            what="libfacedetection, CPU time per image by longer side; same faces",
            record="detect",
            command="speed.detect",
            figure=figures.detect,
        ),
        Row(
            what="VGG16 to fc6 on CPU, float32",
            record="embed",
            part="cpu float32",
            command="speed.embed --precision fp32",
            figure=figures.embed,
        ),
        Row(
            what="VGG16 to fc6 on CPU, bfloat16",
            record="embed",
            part="cpu bfloat16",
            command="speed.embed --precision bf16",
            figure=figures.embed,
        ),
        Row(
            what="VGG16 to fc6 on GPU, bfloat16",
            record="embed",
            part="cuda bfloat16",
            command="speed.embed --device cuda --precision bf16",
            figure=figures.embed,
        ),
        Row(
            what="all backbones, CPU time per image, one thread, batches of 8",
            record="starter",
            command="accuracy.starter --faces fer2013.parquet --recipe DIR",
            figure=figures.backbone_speed,
        ),
        Row(
            what="listing 100,000 objects of a local S3 server",
            record="index",
            command="speed.index",
            figure=figures.index,
        ),
        Row(
            what="`--cascade`, CPU time of decoding and detection over sampling everything",
            record="cascade",
            command="speed.cascade --clips CLIPS --minutes 2",
            figure=figures.cascade,
        ),
    ],
    "Speed, memory and growth of whole jobs": [
        Row(
            what="jobs.extract with VGGs of random weights, all in float32",
            record="extraction",
            part="vgg fp32",
            command="speed.extraction --clips CLIPS --copies 13 --other-copies 2",
            figure=figures.extraction,
        ),
        Row(
            what="the same, jobs.extract at its defaults (bfloat16), the others in float32",
            record="extraction",
            part="vgg defaults",
            command="speed.extraction --clips CLIPS --copies 35 --other-copies 2 --defaults",
            figure=figures.extraction,
        ),
        Row(
            what="stages without decoding or networks: seconds and peak memory of the driver",
            record="scale",
            part="run",
            command="speed.scale run",
            figure=figures.scale,
        ),
        Row(
            what="resume of a plan of 1,000,000 segments, all but 100 done",
            record="scale",
            part="resume",
            command="speed.scale resume",
            figure=figures.resume,
        ),
        Row(
            what="bytes of an S3 object of an hour in 29 segments that jobs.extract downloads",
            record="s3_bytes",
            command="speed.s3_bytes",
            figure=figures.s3_bytes,
        ),
        Row(
            what="peak memory of the decoding child with its detector, 1080p",
            record="memory",
            command="speed.memory",
            figure=figures.memory,
        ),
        Row(
            what="start: CPU time of --help, memory of Ray workers and of a decoding child",
            record="startup",
            command="speed.startup",
            figure=figures.startup,
        ),
        Row(
            what="jobs.label over the length of a video, starter model, 1 frame/s",
            record="long_video",
            command="speed.long_video --video people.mp4",
            figure=figures.long_video,
        ),
    ],
    "Training and search": [
        Row(
            what="an epoch over mapped files, over arrays in memory, and of a plain loop, "
            "default CAAN, 2,000 videos x 16 frames of 4096-d vectors",
            record="training",
            command="speed.training",
            figure=figures.training,
        ),
        Row(
            what="1, 2 and 4 workers, the same training",
            record="workers",
            command="speed.training --workers 1 2 4",
            figure=figures.workers,
        ),
        Row(
            what="CPU time of an epoch of 280 videos, one thread",
            record="head_epoch",
            command="speed.head_epoch --videos 280",
            figure=figures.head_epoch,
        ),
        Row(
            what="15 fc6 heads on 1,000 videos x 16 frames, early stopping",
            record="heads",
            command="speed.heads",
            figure=figures.heads,
        ),
        Row(
            what="the same heads x 5 seeds by jobs.reproduce, beside another training",
            record="heads_grid",
            command="speed.heads --reproduce",
            figure=figures.heads_grid,
        ),
        Row(
            what="ASHA against all trials in full: 30 trials of 27 epochs, 600 synthetic videos, "
            "3 search seeds",
            record="search",
            command="speed.search",
            figure=figures.search,
        ),
    ],
    "Reliability": [
        Row(
            what="index, extract, train, tune and label by `ray job submit` on four nodes and S3, "
            "a node lost, one added, label stopped and submitted again; against one process",
            record="cluster_run",
            command="reliability.cluster_run",
            figure=figures.cluster,
        ),
        Row(
            what="kills of drivers, workers, raylets, machines and jobs; two drivers, and zombies",
            record="reliability",
            part="kills",
            command="reliability kills",
            figure=figures.kills,
        ),
        Row(
            what="hostile and broken files through index and extract",
            record="reliability",
            part="media",
            command="reliability media",
            figure=figures.media,
        ),
        Row(
            what="faults of an S3 server during index, extract and label",
            record="reliability",
            part="storage",
            command="reliability storage",
            figure=figures.storage,
        ),
    ],
}
