"""Data sets whose splits are published lists: Ekman-6, VideoEmotion-8, DFEW, FERV39k, MAFW.

Lists are found by name, at any depth, under the folder of the lists; by default that is the data
set's folder. Videos are found at any depth under the data set's folder. A listed video without a
file becomes a row with the status `missing`. A video in no list is left out.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence

from caan import storage
from caan.datasets.dataset import Row
from caan.datasets.folder import NOT_VIDEOS
from caan.errors import InputError
from caan.schema import canonical_emotion, video_id_of

Entry = tuple[str, str, str]
"""Key of a video (`anger/1000`, `00001`), label as the list writes it (maybe empty), split."""

DFEW_EMOTIONS = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
"""Labels 1 to 7 of DFEW's CSV files."""

MAFW_EMOTIONS = (
    *("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
    *("contempt", "anxiety", "helplessness", "disappointment"),
)
"""Labels of MAFW, by the numbers that some lists have instead of words."""

_IMAGES = (".jpg", ".jpeg", ".png")


def read_ekman6(folder: str, lists: str, split: int) -> list[Row]:
    """Rows of Ekman-6: `<class>/<number>.<ending>`, lists `<class>/<number> <label number>`."""
    return _rows(folder, _class_lists(lists or folder, split))


def read_videoemotion8(folder: str, lists: str, split: int) -> list[Row]:
    """Rows of one of the ten splits of VideoEmotion-8.

    The splits come from the published workbook (an .xlsx file) if it lies among the lists, else
    from `trainlist<NN>.txt` and `testlist<NN>.txt`; the test lists have no label numbers.
    """
    books = [f.uri for f in storage.list_files(lists or folder) if f.uri.lower().endswith(".xlsx")]
    if not books:
        return _rows(folder, _class_lists(lists or folder, split))
    if len(books) > 1:
        raise InputError(f"{len(books)} .xlsx files lie under `{lists or folder}`: keep only one.")
    return _rows(folder, _workbook(books[0], split, folder))


def read_dfew(folder: str, lists: str, split: int) -> list[Row]:
    """Rows of DFEW: `{train,test}(single-labeled)/set_<n>.csv` with video_name and label 1 to 7."""
    entries: list[Entry] = []
    for part in ("train", "test"):
        uri = _find(lists or folder, f"{part}(single-labeled)/set_{split}.csv")
        for line in csv.DictReader(io.StringIO(storage.read_bytes(uri).decode("utf-8-sig"))):
            if not {"video_name", "label"} <= set(line):
                raise InputError(f"the list `{uri}` has no columns video_name and label.")
            label = _numbered(line["label"], DFEW_EMOTIONS, 1, uri)
            entries.append((line["video_name"].zfill(5), label, part))
    return _rows(folder, entries)


def read_ferv39k(folder: str, lists: str, split: int) -> list[Row]:
    """Rows of FERV39k: `{train,test}_All.csv`, lines `<scene>/<emotion>/<number> <emotion>`."""
    entries = []
    for part in ("train", "test"):
        uri = _find(lists or folder, f"All_scenes/{part}_All.csv")
        for line in _lines(uri):
            key, _, label = line.rpartition(" ")
            entries.append((key, label, part))
    return _rows(folder, entries)


def read_mafw(folder: str, lists: str, split: int) -> list[Row]:
    """Rows of MAFW: `single/no_caption/set_<n>/{train,test}.txt`, `<number> <emotion>`."""
    entries = []
    for part in ("train", "test"):
        uri = _find(lists or folder, f"single/no_caption/set_{split}/{part}.txt")
        for line in _lines(uri):
            words = line.split()
            label = _numbered(words[-1], MAFW_EMOTIONS, 0, uri)
            entries.append((_without_ending(words[0].rpartition("/")[2]), label, part))
    return _rows(folder, entries)


def _class_lists(folder: str, split: int) -> list[Entry]:
    entries = []
    for part in ("train", "test"):
        for line in _lines(_find(folder, f"{part}list{split:02d}.txt")):
            key = re.sub(r"\s+\d+$", "", line)
            entries.append((key, key.partition("/")[0], part))
    return entries


def _workbook(uri: str, split: int, folder: str) -> list[Entry]:
    """Entries of one split of VideoEmotion-8's workbook.

    The second sheet has two columns per split, train and test. From the third row on they hold
    titles of videos without class and ending. The class is the folder of the video. A title that
    occurs in two classes stands for both videos.

    Source: the code of CTEN, which reads it in this way; not tried on the published file.
    """
    import openpyxl  # imports for 0.2 s: only VideoEmotion-8's workbook needs it

    book = openpyxl.load_workbook(io.BytesIO(storage.read_bytes(uri)), read_only=True)
    sheet = book.worksheets[min(1, len(book.worksheets) - 1)]
    keys: dict[str, set[str]] = {}
    for file in storage.list_files(folder):
        if not file.uri.lower().endswith(NOT_VIDEOS):
            parts = _without_ending(file.uri).split("/")
            keys.setdefault(parts[-1].lower(), set()).add("/".join(parts[-2:]))
    entries: dict[Entry, None] = {}
    for row in sheet.iter_rows(min_row=3, values_only=True):
        for part, cell in zip(("train", "test"), row[2 * split - 2 : 2 * split], strict=False):
            if cell is None or not (name := str(cell).strip()):
                continue
            # A title may end like a file name.
            found = keys.get(name.lower()) or keys.get(_without_ending(name).lower())
            for key in sorted(found or {name}):
                label = key.partition("/")[0] if "/" in key else ""
                entries[key, label, part] = None
    if not entries:
        raise InputError(
            f"sheet `{sheet.title}` of `{uri}` has no split {split}: give another "
            "`--published-split`."
        )
    return list(entries)


def _numbered(text: str, emotions: Sequence[str], first: int, uri: str) -> str:
    if not text.isdigit():
        return text
    number = int(text) - first
    if not 0 <= number < len(emotions):
        raise InputError(
            f"the list `{uri}` has the label {text}; the numbers of its emotions are {first} to "
            f"{first + len(emotions) - 1}."
        )
    return emotions[number]


def _lines(uri: str) -> list[str]:
    text = storage.read_bytes(uri).decode("utf-8-sig")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _find(folder: str, ending: str) -> str:
    found = [f.uri for f in storage.list_files(folder) if f.uri.endswith("/" + ending)]
    if len(found) != 1:
        raise InputError(
            f"{len(found) or 'no'} files `{ending}` lie under `{folder}`, and exactly one is "
            "needed: give the folder of the published lists with `--lists` and the number of the "
            "split with `--published-split`."
        )
    return found[0]


def _without_ending(name: str) -> str:
    """`000046280.avi` -> `000046280`; only endings of video files are removed."""
    return re.sub(r"\.(mp4|avi|mkv|mov|webm|flv|wmv|mpe?g|m4v|3gp)$", "", name, flags=re.I)


def _rows(folder: str, entries: Iterable[Entry]) -> list[Row]:
    videos, images = _stored(folder)
    rows = []
    splits: dict[str, str] = {}
    for key, label, split in entries:
        if splits.setdefault(key, split) != split:
            raise InputError(
                f"the lists have `{key}` in {splits[key]} and in {split}: keep it in one of them."
            )
        known: Row = {"label": canonical_emotion(label) or None, "split": split}
        file = videos.get(key.lower()) or videos.get(key.lower().lstrip("0"))
        if file is None:
            uri = images.get(key.lower()) or storage.join(storage.normalise(folder), key)
            what = "only single images" if key.lower() in images else "no video"
            error = f"{what} of `{key}` under the data set's folder; a video file is needed"
            file = storage.StoredFile(uri=uri, size_bytes=0, etag="")
            known |= {"status": "missing", "error": error}
        known |= {"uri": file.uri, "size_bytes": file.size_bytes, "etag": file.etag}
        rows.append(known | {"video_id": video_id_of(file.uri, None, None)})
    return rows


def _stored(folder: str) -> tuple[Mapping[str, storage.StoredFile], Mapping[str, str]]:
    """Videos, and folders of images, by every tail of their path (`a/b/1`, `b/1`, `1`).

    A tail that two videos share is left out.
    """
    videos: dict[str, storage.StoredFile] = {}
    twice: set[str] = set()
    images: dict[str, str] = {}
    root = storage.normalise(folder)
    for file in storage.list_files(folder):
        if file.uri.lower().endswith(_IMAGES):
            parent = file.uri.rpartition("/")[0]
            images |= dict.fromkeys(_tails(parent[len(root) :]), parent)
        elif not file.uri.lower().endswith(NOT_VIDEOS):
            for tail in _tails(_without_ending(file.uri[len(root) :])):
                twice |= {tail} & set(videos)
                videos[tail] = file
    return {tail: file for tail, file in videos.items() if tail not in twice}, images


def _tails(path: str) -> list[str]:
    parts = path.lower().strip("/").split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]
