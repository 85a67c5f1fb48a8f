"""The page in a real browser: what it shows is what is in the bins, and nothing in them runs.

Skipped where there is no Chromium: `apt-get install chromium`, or TURNPACK_CHROMIUM names one.
"""

import json
from itertools import pairwise

import numpy as np
import pytest

import shown
from turnpack import bins, tokenizers
from turnpack.cli import main
from turnpack.reading import visible

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(not shown.CHROMIUM, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("page")
    long = {"long": ("Say it often", "river and sea, " * 400)}
    files = [shown.chats(tmp_path), shown.chats(tmp_path, long, "long.jsonl")]
    return shown.prepared(tmp_path, *files, length=1000)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=shown.CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser):
    """Opens a file with the network off, and fails where it complains or asks for anything."""
    contexts, complaints = [], []

    def open(file, width=1280, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: complaints.append(request.url))
        page.goto(f"file://{file}")
        assert complaints.pop(0) == page.url  # the page itself
        return page

    yield open
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(opened, folder):
    return opened(folder / "report.html")


def stored(folder):
    return {
        row.number: row
        for some in bins.read(bins.files(folder))
        for row in map(some.row, range(len(some.rows) - 1))
    }


def rows_in(page):
    return json.loads(page.locator("#data").text_content())["rows"]


def pieces_of(page):
    """Of every piece on the screen: its text, whether it is marked, its classes."""
    return page.eval_on_selector_all(
        "#text .tok",
        "all => all.map(t => [t.textContent, !!t.closest('mark'), t.className.split(' ')])",
    )


def test_its_counts_are_those_of_the_report(page, folder):
    report = json.loads((folder / "report.json").read_text())

    def count(name):
        return int(page.locator(f"[data-count={name}]").inner_text().replace(",", ""))

    conversations, tokens = report["conversations"], report["tokens"]
    assert {name: count(name) for name in conversations} == conversations
    assert (count("tokens"), count("trained")) == (tokens["total"], tokens["trained"])
    assert (count("rows"), count("bins")) == (report["rows"], report["bins"])
    assert count("capacity") == report["capacity"]
    told = page.eval_on_selector_all(
        "[data-reason]", "all => all.map(one => [one.dataset.reason, Number(one.textContent)])"
    )
    assert dict(told) == report["rejected_by_reason"]
    assert (folder / "report.html").stat().st_size < 1_000_000


def test_the_targets_on_the_page_are_the_tokens_with_labels(page, folder):
    rows, backend = stored(folder), tokenizers.load(folder / "tokenizer")
    data = rows_in(page)
    assert {row["n"] for row in data} == {*rows}
    for _ in data:
        number = int(page.locator("#facts").inner_text().split()[1])
        (row,) = (row for row in data if row["n"] == number)
        kept = rows[number]
        assert row["ids"] == kept.input_ids.tolist()
        starts = np.cumsum([0, *(row["m"].get(str(i), 1) for i in range(len(row["p"])))]).tolist()
        pieces = pieces_of(page)
        assert len(pieces) == len(starts) - 1
        for (_, marked, classes), (start, end) in zip(pieces, pairwise(starts), strict=True):
            targets = kept.targets[start:end]
            assert ("all" in classes) == targets.all()
            assert marked == targets.any()
            assert ("none" in classes) == (not targets.any())
            control = backend.control_id(backend.decode(row["ids"][start:end]))
            assert ("chip" in classes) == (end - start == 1 and control == row["ids"][start])
        text = "".join(text for text, _, _ in pieces)
        if "⟨ids" not in text:
            assert text == visible(backend.decode(row["ids"]))
        page.keyboard.press("j")
    assert page.locator("#next").is_disabled()


@pytest.mark.parametrize("name", ["english", "chinese", "emoji", "arabic", "hebrew", "script"])
def test_an_answer_is_marked_as_it_is_written(page, name):
    question, answer = shown.TALKS[name]
    page.fill("#search", question)
    assert page.locator("#place").inner_text() == "1 / 1"
    marked = page.eval_on_selector(
        "#text mark",
        "mark => [...mark.querySelectorAll('.tok')].map(t => t.textContent).join('')",
    )
    assert marked == f"{visible(answer)}<|im_end|>"
    whole = "".join(text for text, _, _ in pieces_of(page))
    assert f"user\n{visible(question)}<|im_end|>" in whole


def test_right_to_left_text_runs_so(page):
    page.fill("#search", "شكراً جزيلاً")
    places = page.evaluate(
        """() => [...document.querySelectorAll('#text mark .tok')]
            .filter(t => /[\\u0621-\\u064a]/.test(t.textContent))
            .map(t => t.getBoundingClientRect().left)"""
    )
    assert places == sorted(places, reverse=True)
    assert len(set(places)) > 3


@pytest.fixture
def previewed(opened, tmp_path):
    """Opens the page of one row."""

    def open(ids, targets, source="a:1"):
        shown.write_bins(tmp_path / "one.parquet", [[(ids, targets, source)]])
        asked = ["preview", str(tmp_path / "one.parquet"), "--html", str(tmp_path / "one.html")]
        assert main([*asked, "--tokenizer", str(shown.tokenizer())]) == 0
        return opened(tmp_path / "one.html")

    return open


def encoded(text):
    backend = tokenizers.load(shown.tokenizer())
    return backend.encode_batch([text], [False])[0].tolist()


def test_half_a_character_at_the_end_of_a_row_is_its_ids(previewed):
    ids = encoded("x龘")[:-1]
    page = previewed(ids, [False, True, True])
    assert [text for text, _, _ in pieces_of(page)] == ["x", f"⟨ids {ids[1]} {ids[2]}⟩"]


def test_a_character_that_is_partly_a_target_says_so(previewed):
    ids = encoded("x龘y")
    page = previewed(ids, [False, False, True, True, False])
    assert [(marked, classes[1]) for _, marked, classes in pieces_of(page)] == [
        (False, "none"),
        (True, "some"),
        (False, "none"),
    ]
    page.locator("#text .some").hover()
    told = page.locator("#token").inner_text()
    assert f"label -100 {ids[2]} {ids[3]}" in told
    assert "partly target" in told


def test_a_source_cannot_end_the_data(previewed):
    for source in ("</script><img src=x onerror=alert(1)>:1", "<!--<script>:1", "\u2028]]>:1"):
        page = previewed(encoded("x"), [False], source)
        assert page.locator("#name").inner_text() == visible(source)
        assert page.locator("img").count() == 0


def test_nothing_of_a_conversation_runs(page):
    for name in ("script", "terminal"):
        page.fill("#search", visible(shown.TALKS[name][0])[:20])
        page.click("#as-tokens")
        page.click("#as-text")
    assert page.title() == "What the model will learn · turnpack"
    made = "document.querySelectorAll('img, a[href^=\"javascript\"], [onerror], script').length"
    assert page.evaluate(made) == 2
    text = page.evaluate("document.documentElement.textContent")
    assert not {"\x1b", "\u202e", "\u2066"} & {*text}
    assert "<img src=x onerror=" in text


def test_the_policy_stops_what_would_get_in(browser, folder):
    context = browser.new_context(offline=True)
    page = context.new_page()
    told = []
    page.on("console", lambda message: told.append(message.text))
    page.goto(f"file://{folder}/report.html")
    page.evaluate(
        """() => {
            const script = document.createElement('script');
            script.textContent = "document.title = 'ran'";
            document.body.append(script);
            const evil = '<b id="b" onclick="document.title=1">';
            document.body.insertAdjacentHTML('beforeend', evil);
            document.getElementById('b').click();
        }"""
    )
    page.wait_for_timeout(100)
    assert page.title() == "What the model will learn · turnpack"
    assert len(told) >= 2
    context.close()


def test_the_keyboard_goes_everywhere(page):
    def facts():
        return page.locator("#facts").inner_text()

    first = facts()
    page.keyboard.press("j")
    second = facts()
    assert second != first
    page.keyboard.press("k")
    assert facts() == first
    page.keyboard.press("t")
    assert page.locator("#as-tokens").get_attribute("aria-pressed") == "true"
    page.keyboard.press("t")
    page.keyboard.press("/")
    page.keyboard.type("what is a river")
    assert page.locator("#place").inner_text() == "1 / 1"
    assert page.locator("#said").inner_text() == f"1 of {len(rows_in(page))} rows"
    page.keyboard.press("Escape")
    assert page.locator("#search").input_value() == ""
    page.locator("#list button").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
    assert facts() == second


def test_keys_of_the_browser_itself_are_left_alone(page):
    before = page.locator("#facts").inner_text()
    page.keyboard.press("Control+j")
    page.locator("nav a").first.focus()
    page.keyboard.press("j")
    page.fill("#search", "")
    page.locator("#search").press("j")
    page.fill("#search", "")
    assert page.locator("#facts").inner_text() == before


def test_the_keyboard_tells_of_every_token(page, folder):
    page.fill("#search", "what is a river")
    number = int(page.locator("#facts").inner_text().split()[1])
    row = stored(folder)[number]
    page.focus("#text")
    told = []
    for _ in row.input_ids[:40]:
        page.keyboard.press("ArrowRight")
        told.append(page.locator("#said").inner_text())
    for place, (line, token, target) in enumerate(
        zip(told, row.input_ids.tolist(), row.targets.tolist(), strict=False)
    ):
        label = f"label {token if target else -100}"
        assert f"id {token}, position {place}, {label}" in line
        assert ("target" if target else "masked") in line
    page.keyboard.press("End")
    assert f"position {len(row.input_ids) - 1}" in page.locator("#token").inner_text().replace(
        "\n", " "
    )
    page.keyboard.press("Home")
    assert "position 0" in page.locator("#token").inner_text().replace("\n", " ")


def test_a_pointer_tells_of_a_token(page):
    page.fill("#search", "什么是河")
    page.locator("#text .tok", has_text="龘").hover()
    told = page.locator("#token").inner_text()
    assert "龘" in told
    assert "ids " in told
    assert "target" in told


def test_a_search_is_marked_in_the_text(page):
    page.fill("#search", "wATer that")
    found = page.evaluate("[...CSS.highlights.get('found')].map(String)")
    assert [text.lower() for text in found] == ["water that"]
    page.fill("#search", "nothing has this")
    assert page.locator("#none").is_visible()
    assert page.locator("#row").is_hidden()
    page.fill("#search", "")
    assert page.locator("#row").is_visible()


def test_kinds_choose_rows(page):
    data = rows_in(page)
    page.get_by_role("button", name="multi-turn").click()
    rows = page.locator("#list li:visible")
    assert rows.count() == sum("multi-turn" in row["k"] for row in data) == 1
    page.get_by_role("button", name="truncated").click()
    assert rows.count() == sum("truncated" in row["k"] for row in data) == 1
    assert "the end of the answer is not learned" in page.locator("#notes").inner_text()
    page.get_by_role("button", name="all", exact=False).first.click()
    assert rows.count() == len(data)


def test_a_long_row_is_shown_from_both_ends(previewed):
    ids = [5 + i % 90 for i in range(9000)]
    page = previewed(ids, [False] + [i % 7 == 0 for i in range(8999)])
    assert page.locator(".gap").inner_text() == "5,000 tokens are left out here"
    (row,) = rows_in(page)
    assert row["ids"] == ids[:3000] + ids[-1000:]
    page.focus("#text")
    page.keyboard.press("End")
    assert f"id {ids[-1]}, position 8999, label -100" in page.locator("#said").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_as_wide_as_the_screen_and_readable(opened, folder, width, scheme):
    page = opened(folder / "report.html", width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    pairs = page.evaluate("""() => ['body', '.lead', '#facts', '#text', '#text mark', '.chip', 'a',
        '.remarks .warning', 'button[aria-pressed=true]', '.legend', 'mark .chip']
        .map(selector => {
            const element = document.querySelector(selector);
            let around = element, ground = 'rgba(0, 0, 0, 0)';
            while (ground === 'rgba(0, 0, 0, 0)') {
                ground = getComputedStyle(around).backgroundColor;
                around = around.parentElement;
            }
            return [selector, getComputedStyle(element).color, ground];
        })""")
    for selector, ink, ground in pairs:
        assert contrast(ink, ground) >= 4.5, selector


def contrast(one, other):
    """Contrast of two colours as WCAG defines it."""

    def light(colour):
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05

    return max(light(one), light(other)) / min(light(one), light(other))


def test_a_screen_reader_hears_what_is_what(page):
    tree = page.locator("body").aria_snapshot()
    for role in (
        'heading "What the model will learn" [level=1]',
        'heading "Conversations" [level=2]',
        'searchbox "Search text and sources"',
        'list "Rows"',
        'button "Next row"',
        'group "Kinds of rows"',
        'img "Histogram of the tokens of rows',
        'navigation "Parts of the page"',
    ):
        assert role in tree, role
    unnamed = page.eval_on_selector_all(
        "button, input",
        "all => all.filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') "
        "|| e.labels?.length)).length",
    )
    assert unnamed == 0
    spoken = page.locator("#text").text_content()
    assert "(target)" in spoken
    assert "(end of target)" in spoken
    assert page.evaluate("[document.documentElement.lang, !!document.querySelector('main')]") == [
        "en",
        True,
    ]
