"""Sidecar files, read back."""

import datetime
from xml.etree import ElementTree

import pytest

from caan.labelling import timelines
from caan.labelling.timelines import Span
from caan.schema import EMOTIONS


def window(person_id: str, start: float, end: float, label: str | None, sure: float = 0.5) -> dict:
    row: dict = {"person_id": person_id, "label": label, "confidence": sure}
    return row | {"start_seconds": start, "end_seconds": end}


def brief(spans: list[Span]) -> list[tuple]:
    return [(s.person_id, s.start_seconds, s.end_seconds, s.label) for s in spans]


def test_overlapping_windows_meet_between_their_centres_and_equal_ones_join() -> None:
    spans = timelines.spans_of(
        [
            window("p0", 0, 4, "joy", 0.8),
            window("p0", 2, 6, "joy", 0.6),
            window("p0", 4, 8, "fear"),
            window("p1", 1, 2, "anger"),
        ]
    )
    assert brief(spans) == [("p0", 0, 5, "joy"), ("p0", 5, 8, "fear"), ("p1", 1, 2, "anger")]
    assert spans[0].confidence == pytest.approx((0.8 * 3 + 0.6 * 2) / 5)


def test_an_absence_is_not_filled_and_windows_without_label_leave_a_gap() -> None:
    spans = timelines.spans_of(
        [window("p0", 0, 2, "joy"), window("p0", 2, 4, None), window("p0", 60, 62, "joy")]
    )
    assert brief(spans) == [("p0", 0, 2, "joy"), ("p0", 60, 62, "joy")]
    assert timelines.spans_of([window("p0", 3, 3, "joy")]) == []


def test_a_person_that_is_only_a_number_is_called_a_person() -> None:
    assert [timelines.person_name(name) for name in ("0", "p1", None)] == ["person 0", "p1", ""]


def test_webvtt_has_a_cue_per_span_in_time_order() -> None:
    spans = timelines.spans_of(
        [window("p1", 3661.25, 3662, "joy", 0.9), window("a<b", 0.5, 2, "fear", 0.25)]
    )
    assert timelines.webvtt(spans) == (
        "WEBVTT\n\n"
        "00:00:00.500 --> 00:00:02.000\na&lt;b: fear 0.25\n\n"
        "01:01:01.250 --> 01:01:02.000\np1: joy 0.90\n"
    )


def test_elan_holds_every_span_on_its_persons_tier_at_its_time() -> None:
    spans = timelines.spans_of(
        [window("p0", 0, 2, "joy"), window("p0", 2, 4, "fear"), window("p1", 1, 3, "joy")]
    )
    text = timelines.elan(
        spans,
        media_name="a & b.mp4",
        emotions=EMOTIONS,
        written_at=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    )
    document = ElementTree.fromstring(text)
    assert [child.tag for child in document if child.tag != "TIER"] == [
        "HEADER", "TIME_ORDER", "LINGUISTIC_TYPE", "LINGUISTIC_TYPE", "LANGUAGE",
        "CONTROLLED_VOCABULARY",
    ]  # fmt: skip
    times = {
        s.get("TIME_SLOT_ID"): int(s.get("TIME_VALUE", "")) for s in document.iter("TIME_SLOT")
    }
    assert list(times.values()) == sorted(times.values())
    found = []
    for tier in document.iter("TIER"):
        for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
            slots = annotation.get("TIME_SLOT_REF1"), annotation.get("TIME_SLOT_REF2")
            value = annotation.findtext("ANNOTATION_VALUE")
            found.append((tier.get("TIER_ID"), times[slots[0]], times[slots[1]], value))
    assert [f for f in found if "confidence" not in f[0]] == [
        ("p0", 0, 2000, "joy"), ("p0", 2000, 4000, "fear"), ("p1", 1000, 3000, "joy"),
    ]  # fmt: skip
    ids = [a.get("ANNOTATION_ID") for a in document.iter("ALIGNABLE_ANNOTATION")]
    assert len(set(ids)) == len(ids) == 6
    media = next(document.iter("MEDIA_DESCRIPTOR"))
    assert media.get("RELATIVE_MEDIA_URL") == "./a & b.mp4"
