"""Both pages in a headless Chromium: they load quietly, votes survive, and what tries to be markup stays text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Chromium, Tab, find
from made_up_pages import EVIL, make_result, make_run

from genrl.comparison.page import write_page
from genrl.evaluation.pictures import PAIRS
from genrl.evaluation.report import write_report

pytestmark = pytest.mark.skipif(
    find() is None, reason="no chromium, chromium-browser or google-chrome on the path; GENRL_CHROMIUM names one"
)
PAGES = ("report", "evaluation")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        "report": write_report(make_run(folder / "run", film=True)),
        "evaluation": write_page(make_result(folder / "evaluation")),
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(str(find()), tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture(params=PAGES)
def file(request: pytest.FixtureRequest, files: dict[str, Path]) -> Path:
    return files[request.param]


def judge(tab: Tab, *keys: str) -> str:
    """Open the blind mode, press keys, return the tally."""
    tab.click("[data-mode=blind]")
    for key in keys:
        tab.press(key)
    return tab.value("document.querySelector('.tally').textContent")


def choose(tab: Tab, selector: str, place: int) -> None:
    """Choose from a select, as a reader would."""
    change = f"select.selectedIndex = {place}; select.dispatchEvent(new Event('change'))"
    tab.value(f"(select => {{ {change} }})(document.querySelector({json.dumps(selector)}))")


def votes(tab: Tab) -> list[list[str]]:
    """The votes on the first two models, as the browser keeps them."""
    return tab.value("JSON.parse(localStorage.getItem(document.querySelector('.blind').dataset.key))['0|1']")


def fresh(browser: Chromium, file: Path, **how: int) -> Tab:
    """The page without votes from an earlier test."""
    tab = browser.open(file, **how)
    if tab.value("localStorage.length"):
        tab.value("localStorage.clear()")
        tab.reload()
    return tab


def test_loads_quietly_and_asks_for_nothing(browser: Chromium, file: Path) -> None:
    tab = browser.open(file)
    assert tab.complaints() == []
    assert tab.loaded() == [file.as_uri()]
    assert tab.value("document.querySelectorAll('.swap select').length") > 0, "the script ran"
    # every picture that is shown is in the album, and has a size on the page
    lost = "[...document.querySelectorAll('.picture use')].filter(use => !document.querySelector(use.getAttribute('href'))).length"
    assert tab.value(lost) == 0
    assert tab.value("document.querySelector('.drawn .picture').getBoundingClientRect().height") > 50


def test_the_policy_stops_what_slips_through(browser: Chromium, files: dict[str, Path], tmp_path: Path) -> None:
    """The policy and not only the escaping is at work: markup put into the file by hand does not run, and is complained about."""
    text = (
        files["report"]
        .read_text()
        .replace("<main>", "<main><script>window.hacked = 3</script><img src='x' onerror='window.hacked = 4'>", 1)
    )
    (tmp_path / "slipped.html").write_text(text)
    tab = browser.open(tmp_path / "slipped.html")
    assert tab.value("window.hacked") is None
    assert sum("Content Security Policy" in words for words in tab.complaints()) >= 2


def test_markup_in_prompts_stays_text(browser: Chromium, file: Path) -> None:
    tab = fresh(browser, file)
    judge(tab, *"1" * 2 * PAIRS)
    assert tab.value("window.hacked") is None and tab.value("document.querySelectorAll('img').length") == 0
    assert tab.value("document.scripts.length") == 1
    assert EVIL in tab.value("document.querySelector('.drawn').textContent")
    told = tab.value("[...document.querySelectorAll('.drawn [data-item]')].map(item => item.dataset.prompt)")
    assert any(prompt.startswith(EVIL) for prompt in told)


def test_votes_are_counted_and_survive_a_reload(browser: Chromium, file: Path) -> None:
    tab = fresh(browser, file)
    models = tab.value("JSON.parse(document.querySelector('.blind').dataset.models)")
    first = tab.value("document.querySelector('.drawn [data-item]').dataset.item")
    assert tab.value("document.querySelector('.blind').getBoundingClientRect().height") == 0, "blind only when asked"
    assert judge(tab, "ArrowLeft", "2", " ", "0") == f"4 of {2 * PAIRS} judged. The count is shown from 5."
    tally = judge(tab, "ArrowRight")
    kept = votes(tab)
    assert len(kept) == 5 and kept[0][0] == first and [vote for _, vote in kept].count("tie") == 2
    wins = [vote for _, vote in kept].count("second")
    assert f"{models[1]} preferred in {wins}, {models[0]} in {3 - wins}, no difference in 2." in tally
    # Wilson's interval, written once more
    n, z, rate = 5, 1.959964, (wins + 1) / 5
    middle, half = rate + z * z / (2 * n), z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert f"{round(100 * rate)}\u00a0%, 95 % interval {round(100 * low)}\u00a0% to {round(100 * high)}\u00a0%" in tally
    tab.reload()
    assert votes(tab) == kept and judge(tab) == tally
    tab.click("[data-do=undo]")
    assert votes(tab) == kept[:-1]


def test_the_side_of_a_model_is_fixed_and_shuffled(browser: Chromium, file: Path) -> None:
    tab = fresh(browser, file)
    judge(tab, *["1"] * (2 * PAIRS))
    left = [vote for _, vote in votes(tab)]
    assert 4 <= left.count("first") <= 2 * PAIRS - 4, "a model that is always on the left is not hidden"
    tab.value("localStorage.clear()")
    tab.reload()
    judge(tab, *["2"] * (2 * PAIRS))
    assert [vote for _, vote in votes(tab)] == [{"first": "second", "second": "first"}[vote] for vote in left]


def test_a_winner_is_called_when_the_interval_excludes_one_half(browser: Chromium, file: Path) -> None:
    tab = fresh(browser, file)
    tab.click("[data-mode=blind]")
    models = tab.value("JSON.parse(document.querySelector('.blind').dataset.models)")
    key = tab.value("document.querySelector('.blind').dataset.key")
    items = tab.value("[...document.querySelectorAll('.drawn [data-item]')].map(item => item.dataset.item)")

    def tally(seconds: int) -> str:
        book = {"0|1": [[item, "second" if i < seconds else "first"] for i, item in enumerate(items[:20])]}
        tab.value(f"localStorage.setItem({json.dumps(key)}, {json.dumps(json.dumps(book))})")
        tab.reload()
        return judge(tab)

    assert f"Winner: {models[1]}, the interval excludes one half." in tally(15)  # Wilson: 53 to 89 %
    assert "No winner: the interval includes one half." in tally(14)  # 48 to 85 %
    assert f"Winner: {models[0]}, the interval excludes one half." in tally(5)


def test_which_is_which_is_hidden_until_voted(browser: Chromium, file: Path) -> None:
    tab = fresh(browser, file)
    judge(tab)
    models = tab.value("JSON.parse(document.querySelector('.blind').dataset.models)")
    stage = tab.value("document.querySelector('.stage').outerHTML")
    assert not any(f">{model}<" in stage or f'"{model}' in stage for model in models)
    assert tab.value("getComputedStyle(document.querySelector('.drawn')).display") == "none"
    assert tab.value("document.querySelector('.reveal').textContent") == ""
    tab.press("1")
    words = tab.value("document.querySelector('.reveal').textContent")
    shown = "second" if votes(tab)[0][1] == "second" else "first"
    assert words.startswith(f"Last vote: {dict(zip(('first', 'second'), models, strict=False))[shown]}. Left was ")


def test_any_two_models_can_be_judged(browser: Chromium, files: dict[str, Path]) -> None:
    tab = fresh(browser, files["evaluation"])
    judge(tab, "1", "1")
    choose(tab, '[data-side="0"]', 2)
    assert judge(tab, "1").startswith("1 of ")
    kept = tab.value("JSON.parse(localStorage.getItem(document.querySelector('.blind').dataset.key))")
    assert {pair: len(book) for pair, book in kept.items()} == {"0|1": 2, "1|2": 1}
    choose(tab, '[data-side="1"]', 2)
    assert tab.value("document.querySelector('.ask').textContent") == "Choose two different models."


def test_votes_are_downloaded_as_json(browser: Chromium, files: dict[str, Path], tmp_path: Path) -> None:
    tab = fresh(browser, files["report"])
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), eventsEnabled=True)
    judge(tab, "1", "0")
    tab.click("[data-do=download]")
    while browser.wait("Browser.downloadProgress")["state"] != "completed":
        pass
    record = json.loads((tmp_path / "votes-run.json").read_text())
    assert record["genrl_votes"] == 1 and record["page"].startswith("genrl votes run ")
    assert (record["first"], record["second"]) == ("base model", "trained model")
    assert [[vote["item"], vote["vote"]] for vote in record["votes"]] == votes(tab) and record["counts"]["tie"] == 1
    assert tab.complaints() == []


def test_reset_forgets_the_votes(browser: Chromium, files: dict[str, Path]) -> None:
    tab = fresh(browser, files["report"])
    judge(tab, "1", "1")
    tab.value("window.confirm = () => false")
    tab.click("[data-do=reset]")
    assert len(votes(tab)) == 2
    tab.value("window.confirm = () => true")
    tab.click("[data-do=reset]")
    assert votes(tab) == [] and tab.value("document.querySelector('.tally').textContent") == ""


def test_a_select_shows_one_grid_at_a_time(browser: Chromium, file: Path) -> None:
    tab = browser.open(file)
    shown = "[...document.querySelectorAll('#extremes .swap > details')].map(fold => fold.open && fold.getBoundingClientRect().height > 0)"
    assert tab.value(shown)[0] and sum(tab.value(shown)) == 1
    choose(tab, "#extremes select", 1)
    assert tab.value(shown)[1] and sum(tab.value(shown)) == 1


def test_everything_but_blind_is_there_without_javascript(browser: Chromium, file: Path) -> None:
    tab = browser.open(file, script=False)
    assert tab.complaints() == []
    assert tab.value("document.querySelectorAll('select.choose, .choose').length") == 0
    visible = "[...document.querySelectorAll('main section')].map(part => part.getBoundingClientRect().height > 60)"
    assert all(tab.value(visible)) and len(tab.value(visible)) >= 9
    summaries = "[...document.querySelectorAll('.swap summary')].every(summary => summary.getBoundingClientRect().height > 0)"
    assert tab.value(summaries), "every grid can be unfolded"
    assert tab.value("['.blind', '.modes'].every(name => document.querySelector(name).getBoundingClientRect().height === 0)")
    assert "Judging blind needs JavaScript" in tab.value("document.querySelector('#pictures').innerText")


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window(browser: Chromium, file: Path, width: int) -> None:
    tab = fresh(browser, file, width=width)
    assert tab.value("document.documentElement.scrollWidth") == width
    judge(tab)
    assert tab.value("document.documentElement.scrollWidth") == width
    # nothing sticks out on the right but what scrolls in a region of its own
    out = """[...document.querySelectorAll('main *, header *')].filter(part => part.getBoundingClientRect().right > innerWidth + 1
        && !part.closest('.scroll, .film, pre, svg, .unseen, [hidden]')).map(part => part.outerHTML.slice(0, 90))"""
    assert tab.value(out) == []


def test_keyboard_reaches_what_scrolls_and_votes(browser: Chromium, file: Path) -> None:
    tab = fresh(browser, file)
    regions = "[...document.querySelectorAll('.scroll, .film, .stage, pre')].every(part => part.tabIndex === 0)"
    assert tab.value(regions)
    judge(tab)
    assert tab.value("document.activeElement.className") == "stage"
    tab.press("Tab")  # to the first button, which space presses instead of saying "no difference"
    tab.press(" ")
    assert [vote for _, vote in votes(tab)] != ["tie"] and len(votes(tab)) == 1
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.value(outline) == "solid", "the focus is seen"


def test_dark_and_light(browser: Chromium, file: Path) -> None:
    light, dark = (
        browser.open(file, dark=dark).value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        for dark in (False, True)
    )
    assert light > 200 and dark < 50
