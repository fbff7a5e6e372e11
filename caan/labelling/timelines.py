"""Labels over time as text: WebVTT for video players, ELAN's .eaf for annotators."""

import datetime
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

Row = Mapping[str, Any]

ELAN_SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"
"""Identifier of the format; nothing is downloaded from there."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """One person's label over one time span."""

    person_id: str
    """The person."""
    start_seconds: float
    """Start, since the video's first frame."""
    end_seconds: float
    """End, after the start."""
    label: str
    """Emotion, or `uncertain`."""
    confidence: float
    """Confidence, 0..1; of joined windows the mean, weighted by length."""


def person_name(person_id: str | None) -> str:
    """Name for display: `person 0` for a number, else the id itself; empty without a person."""
    return f"person {person_id}" if (person_id or "").isdigit() else person_id or ""


def spans_of(rows: Iterable[Row], min_seconds: float = 0.001) -> list[Span]:
    """Convert rows of labels or windows to spans, sorted by person and time.

    Two windows of a person that overlap are cut at the middle between their centres, because a
    label fits the centre of its window best. Neighbours with the same label are joined. Rows
    without a label and spans shorter than `min_seconds` are left out.
    """
    by_person: dict[str, list[Span]] = {}
    for row in rows:
        if row["label"] is None or row["start_seconds"] is None or row["end_seconds"] is None:
            continue
        span = Span(
            person_id=row["person_id"] or "",
            start_seconds=row["start_seconds"],
            end_seconds=row["end_seconds"],
            label=row["label"],
            confidence=float(row["confidence"] or 0.0),
        )
        by_person.setdefault(span.person_id, []).append(span)
    spans = []
    for _, own in sorted(by_person.items()):
        own = _without_overlap(sorted(own, key=lambda s: (s.start_seconds, s.end_seconds)))
        spans += _joined([s for s in own if s.end_seconds - s.start_seconds >= min_seconds])
    return spans


def _without_overlap(spans: list[Span]) -> list[Span]:
    cut = list(spans)
    for i in range(len(spans) - 1):
        one, next_one = spans[i], spans[i + 1]
        if next_one.start_seconds < one.end_seconds:
            centres = one.start_seconds + one.end_seconds
            middle = (centres + next_one.start_seconds + next_one.end_seconds) / 4
            cut[i] = replace(cut[i], end_seconds=min(middle, cut[i].end_seconds))
            cut[i + 1] = replace(cut[i + 1], start_seconds=max(middle, next_one.start_seconds))
    return cut


def _joined(spans: list[Span]) -> list[Span]:
    joined: list[Span] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last is None or last.label != span.label or last.end_seconds < span.start_seconds:
            joined.append(span)
            continue
        lengths = last.end_seconds - last.start_seconds, span.end_seconds - span.start_seconds
        weighted = last.confidence * lengths[0] + span.confidence * lengths[1]
        joined[-1] = replace(last, end_seconds=span.end_seconds, confidence=weighted / sum(lengths))
    return joined


def webvtt(spans: Sequence[Span]) -> str:
    """WebVTT text with one cue per span in time order: `person 0: joy 0.83`.

    Source: W3C WebVTT; cues of several people at one time are shown together.
    """
    lines = ["WEBVTT", ""]
    for span in sorted(spans, key=lambda s: (s.start_seconds, s.person_id)):
        who = f"{person_name(span.person_id)}: " if span.person_id else ""
        lines += [
            f"{_clock(span.start_seconds)} --> {_clock(span.end_seconds)}",
            html.escape(f"{who}{span.label} {span.confidence:.2f}", quote=False),
            "",
        ]
    return "\n".join(lines)


def _clock(seconds: float) -> str:
    milliseconds = _milliseconds(seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _milliseconds(seconds: float) -> int:
    return round(1000 * max(0.0, seconds))


def elan(
    spans: Sequence[Span],
    *,
    media_name: str,
    emotions: Sequence[str],
    written_at: datetime.datetime,
) -> str:
    """An ELAN annotation document (EAF 3.0) with a tier of labels and one of confidence per person.

    `media_name` is the video's file name; ELAN looks for it next to the .eaf. The emotions are the
    tier's controlled vocabulary, so that an annotator can choose a correct label from a list.
    """
    document = ElementTree.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "caan",
            "DATE": written_at.astimezone(datetime.UTC).isoformat(timespec="seconds"),
            "FORMAT": "3.0",
            "VERSION": "3.0",
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:noNamespaceSchemaLocation": ELAN_SCHEMA,
        },
    )
    header = _add(document, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    _add(
        header,
        "MEDIA_DESCRIPTOR",
        MEDIA_URL=f"file:./{media_name}",
        RELATIVE_MEDIA_URL=f"./{media_name}",
        MIME_TYPE=_mime_type(media_name),
    )
    used = _add(header, "PROPERTY", NAME="lastUsedAnnotationId")
    used.text = str(2 * len(spans))
    slots = _time_slots(document, spans)
    number = 0
    people = sorted({span.person_id for span in spans})
    for person_id in people:
        own = [i for i, span in enumerate(spans) if span.person_id == person_id]
        for kind in ("emotion", "confidence"):
            name = (person_name(person_id) or "video") + ("" if kind == "emotion" else f" {kind}")
            tier = _add(
                document, "TIER", LINGUISTIC_TYPE_REF=kind, PARTICIPANT=person_id, TIER_ID=name
            )
            for i in own:
                number += 1
                annotation = _add(
                    _add(tier, "ANNOTATION"),
                    "ALIGNABLE_ANNOTATION",
                    ANNOTATION_ID=f"a{number}",
                    TIME_SLOT_REF1=slots[i][0],
                    TIME_SLOT_REF2=slots[i][1],
                )
                value = _add(annotation, "ANNOTATION_VALUE")
                span = spans[i]
                value.text = span.label if kind == "emotion" else f"{span.confidence:.3f}"
    shared = {"GRAPHIC_REFERENCES": "false", "TIME_ALIGNABLE": "true"}
    _add(
        document,
        "LINGUISTIC_TYPE",
        LINGUISTIC_TYPE_ID="emotion",
        CONTROLLED_VOCABULARY_REF="emotions",
        **shared,
    )
    _add(document, "LINGUISTIC_TYPE", LINGUISTIC_TYPE_ID="confidence", **shared)
    _add(document, "LANGUAGE", LANG_ID="und", LANG_LABEL="undetermined (und)")
    vocabulary = _add(document, "CONTROLLED_VOCABULARY", CV_ID="emotions")
    _add(vocabulary, "DESCRIPTION", LANG_REF="und")
    for i, emotion in enumerate([*emotions, "uncertain"]):
        entry = _add(vocabulary, "CV_ENTRY_ML", CVE_ID=f"cve{i}")
        _add(entry, "CVE_VALUE", LANG_REF="und", DESCRIPTION="").text = emotion
    ElementTree.indent(document, "    ")
    text = ElementTree.tostring(document, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _time_slots(document: ElementTree.Element, spans: Sequence[Span]) -> list[tuple[str, str]]:
    """Add TIME_ORDER, sorted by time; return the two slots of each span."""
    ends = [(_milliseconds(s.start_seconds), i, 0) for i, s in enumerate(spans)]
    ends += [(_milliseconds(s.end_seconds), i, 1) for i, s in enumerate(spans)]
    order = _add(document, "TIME_ORDER")
    names: dict[tuple[int, int], str] = {}
    for number, (milliseconds, i, side) in enumerate(sorted(ends), start=1):
        names[i, side] = f"ts{number}"
        _add(order, "TIME_SLOT", TIME_SLOT_ID=f"ts{number}", TIME_VALUE=str(milliseconds))
    return [(names[i, 0], names[i, 1]) for i in range(len(spans))]


def _add(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, attributes)


def _mime_type(name: str) -> str:
    ending = name.rpartition(".")[2].lower()
    return {"mp4": "video/mp4", "mpg": "video/mpeg", "mpeg": "video/mpeg"}.get(ending, "video/*")
