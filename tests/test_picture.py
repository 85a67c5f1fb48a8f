"""The picture: every column is its middle token, and its size is bounded."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import turnpack as tp
from turnpack import picture
from turnpack.picture import COLOURS, WIDTH, Bar


def columns(svg, bars):
    """What the columns of every bar are: (colour, target), "padding" or None."""
    root = ElementTree.fromstring(svg)
    found = [[None] * WIDTH for _ in range(bars)]
    for path in root.findall("path"):
        look = re.fullmatch(r"tp-(\w+) tp-c(\d)", path.get("class")).groups()
        for x, y, wide in re.findall(r"M(\d+) ([\d.]+)h(\d+)", path.get("d")):
            row = found[int(float(y)) // picture.PITCH]
            for column in range(int(x), int(x) + int(wide)):
                assert row[column] is None
                row[column] = (int(look[1]), look[0] == "target")
    for rect in root.findall("g[@class='tp-padding']/rect"):
        row = found[int(rect.get("y")) // picture.PITCH]
        x = int(rect.get("x"))
        assert x + int(rect.get("width")) == WIDTH
        row[x:] = ["padding" if column is None else column for column in row[x:]]
    return found


@settings(deadline=None)
@given(data=st.data(), capacity=st.integers(1, 3000), count=st.integers(1, 4))
def test_every_column_is_its_middle_token(data, capacity, count):
    bars = []
    for number in range(count):
        lengths = []
        while sum(lengths) < capacity and len(lengths) < 5:
            lengths.append(data.draw(st.integers(1, capacity - sum(lengths))))
        seed = data.draw(st.integers(0, 9))
        targets = np.random.default_rng(seed).random(sum(lengths)) < 0.5
        bars.append(Bar(number, np.array(lengths, np.int64), targets))
    drawn = columns(picture.svg(bars, capacity), count)
    for bar, row in zip(bars, drawn, strict=True):
        documents = np.repeat(np.arange(len(bar.lengths)), bar.lengths)
        for column, look in enumerate(row):
            token = (2 * column + 1) * capacity // (2 * WIDTH)
            if token < len(documents):
                colour = (bar.number + int(documents[token])) % COLOURS
                assert look == (colour, bool(bar.targets[token]))
            else:
                assert look in ("padding", None)


def test_its_size_is_bounded():
    random = np.random.default_rng(0)
    bars = [Bar(n, np.full(65536, 2, np.int64), random.random(131072) < 0.5) for n in range(40)]
    assert len(picture.svg(bars, 131072)) < 600_000


def tokens():
    ids = np.arange(9, dtype=np.int32)
    mask = np.array([0, 1, 1, 0, 0, 1, 0, 0, 1], np.uint8)
    return tp.Tokens(input_ids=ids, loss_mask=mask, offsets=[0, 3, 6, 9])


@pytest.mark.parametrize("layout", ["rows", "flat"])
def test_packed_is_the_picture_of_its_bins(layout):
    plan = tp.plan(tokens().lengths, 7)
    packed = tp.pack(tokens(), plan, layout=layout)
    html = packed._repr_html_()
    assert repr(packed) in html.replace("&#x27;", "'")
    svg = html[html.index("<svg") : html.rindex("</div>")]
    full, rest = columns(svg, 2)
    assert full[1::143] == [
        (0, False),
        (0, True),
        (0, True),
        (1, False),
        (1, False),
        (1, True),
        "padding",
    ]
    assert rest[1::143] == [(1, False), (1, False), (1, True), *["padding"] * 4]


def test_tokens_and_plans_have_pictures():
    html = tokens()._repr_html_()
    assert "row 2: 1 document, 3 tokens, 33% targets" in html
    assert "tp-padding" not in html[html.index("<svg") :]
    plan = tp.plan(tokens().lengths, 7)
    assert "bin 0: 2 documents, 6 tokens" in plan._repr_html_()
    assert "0 tokens wide" not in tp.Plan([], [0], [], 5)._repr_html_()
    nothing = tp.Tokens(
        input_ids=np.zeros(0, np.int32), loss_mask=np.zeros(0, np.uint8), offsets=[0]
    )
    assert "<svg" not in nothing._repr_html_()


def test_no_more_than_forty_bars_are_drawn():
    many = tp.Tokens(
        input_ids=np.zeros(500, np.int32),
        loss_mask=np.zeros(500, np.uint8),
        offsets=np.arange(0, 501, 5),
    )
    plan = tp.plan(many.lengths, 5)
    for noun in (many, plan, tp.pack(many, plan)):
        assert noun._repr_html_().count("<title>") == picture.MOST
