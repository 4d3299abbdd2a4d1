"""What descriptions of series say in eleven languages, and how often that is right."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from afire_monai.radiographs.body_view_words import body_of, view_of
from afire_monai.radiographs.header import Header
from afire_monai.radiographs.judgement import LATERAL, NOT_CHEST, judge


def reason(text: str) -> str:
    return judge(Header(modality="DX", series_texts=(text,))).reason


def test_words_tell_what_is_left_out_and_keep_frontal_chests() -> None:
    """Of 341 descriptions made before the words: 290 to leave out, 51 frontal chests to keep."""
    lines = (Path(__file__).parent / "series_words.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    right = Counter(kind for kind, text in rows if bool(reason(text)) == (kind != "frontal"))
    assert Counter(kind for kind, _ in rows) == {"other": 246, "lateral": 44, "frontal": 51}
    assert right["frontal"] == 51
    assert right["lateral"] == 44
    assert right["other"] >= 244


@pytest.mark.parametrize(
    "text",
    ["Unterarm", "Kniegelenk", "Knöcherner Thorax", "Torax oseo", "Beckenübersicht", "左手正位", "胸腰椎正位",
     "锁骨正位",
     "Shunt series chest", "Pied face", "Main face", "Gril costal", "Kolumna dorsalna", "ASP face"],
)  # fmt: skip
def test_other_parts_are_left_out(text: str) -> None:
    assert reason(text)


@pytest.mark.parametrize(
    "text",
    ["Thorax seitl", "Thorax li. anl.", "Thorax links anliegend", "Tórax Perf.", "Chest LLAT", "Chest L",
     "Thorax dwars",
     "Lungröntgen sida", "Torace L-L", "Klatka piersiowa bok"],
)  # fmt: skip
def test_laterals_are_left_out(text: str) -> None:
    assert reason(text) == LATERAL


@pytest.mark.parametrize(
    "text",
    ["Thorax pa Rippen", "胸部正位 锁骨", "Tórax PA de pie", "Thorax face au pied du lit", "Chest PA arms raised",
     "Chest PA main hospital", "Chest PA after VP shunt", "Toraks AP ayakta"],
)  # fmt: skip
def test_words_with_another_meaning_beside_a_chest_do_not_count(text: str) -> None:
    assert body_of([text]) == (True, False)
    assert view_of([text]) == {"frontal"}


def test_a_rib_alone_is_another_part() -> None:
    assert reason("Rippen links") == reason("肋骨正位") == NOT_CHEST
