"""DATASETS: every data set by its name on the command line."""

from caan.datasets.dataset import (
    PLUTCHIK8,
    SEVEN,
    Dataset,
    check_labels,
    check_splits,
    compare_counts,
    face_crops_of,
    require_context,
)
from caan.datasets.folder import (
    read_class_folders,
    read_list,
    read_plain_folder,
    read_split_folders,
)
from caan.datasets.published import (
    MAFW_EMOTIONS,
    read_dfew,
    read_ekman6,
    read_ferv39k,
    read_mafw,
    read_videoemotion8,
)
from caan.schema import LABEL_SETS, canonical_emotion

DATASETS: dict[str, Dataset] = {
    "folder": Dataset(read=read_plain_folder),
    "class_folders": Dataset(read=read_class_folders),
    "csv": Dataset(read=read_list),
    "heiv": Dataset(read=read_list, label_set=SEVEN, published={"train": 607, "test": 405}),
    "ekman6": Dataset(
        read=read_ekman6,
        label_set=LABEL_SETS["ekman6"],
        published={"train": 819, "test": 818},
    ),
    "ve8": Dataset(
        read=read_videoemotion8,
        label_set=PLUTCHIK8,
        published={"train": 732, "test": 367},
        num_splits=10,
    ),
    "caer": Dataset(
        read=read_split_folders,
        label_set=SEVEN,
        published={"train": 9240, "val": 1320, "test": 2641},
    ),
    "afew": Dataset(read=read_split_folders, label_set=SEVEN),
    "dfew": Dataset(read=read_dfew, label_set=SEVEN, num_splits=5, is_face_crops=True),
    "ferv39k": Dataset(read=read_ferv39k, label_set=SEVEN, is_face_crops=True),
    "mafw": Dataset(
        read=read_mafw,
        label_set=tuple(canonical_emotion(name) for name in MAFW_EMOTIONS),
        num_splits=5,
        is_face_crops=True,
    ),
}

__all__ = [
    "DATASETS",
    "Dataset",
    "check_labels",
    "check_splits",
    "compare_counts",
    "face_crops_of",
    "require_context",
]
