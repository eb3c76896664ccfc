"""The report in a headless Chromium: without a network, by keyboard, on a phone and in the dark."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium
from run_folders import make_run
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from verl_dra.cli import main

pytestmark = pytest.mark.slow


class Browser:
    """A report, open in Chromium.

    What the page redraws is asked for in one call: an element that was found in one may be gone in the next.
    """

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, report: Path, width: int = 1400, height: int = 1000, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(report.as_uri())
        self.wait(lambda: self.js("return document.documentElement.dataset.ready") == "yes")

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition: Any) -> Any:
        """What the condition gives, once that is true."""
        return WebDriverWait(self.driver, 60, poll_frequency=0.05).until(lambda _: condition())

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.driver, duration=0).send_keys(key).perform()

    def texts(self, selector: str) -> list[str]:
        """What is shown of each element, "" of one that is hidden."""
        return self.js(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map(e => e.closest('[hidden]') ? '' : e.innerText.trim())",
            selector,
        )

    def chart(self, title: str) -> str:
        """The plot of the chart that is called so."""
        found = self.js(
            "return [...document.querySelectorAll('figure')].find(e => e.innerText.startsWith(arguments[0]))"
            "?.querySelector('.plot').id",
            title,
        )
        return str(found)

    def drawn(self, plot: str) -> list[dict[str, Any]]:
        """The traces of a plot, once it has been drawn because it was scrolled to."""
        # Plotly keeps numbers as it likes; those that are drawn are plain. It is scrolled to each time, as the page may
        # have put another in its place.
        code = (
            "const plot = document.getElementById(arguments[0]); plot?.scrollIntoView();"
            "return plot?.data?.map(t => ({name: t.name, type: t.type, "
            "x: Array.from(t.x), y: Array.from(t.y), z: t.z && Array.from(t.z), colour: t.line && t.line.color, "
            "width: t.line && t.line.width}))"
        )
        return self.wait(lambda: self.js(code, plot))

    @property
    def step(self) -> str:
        return str(self.js("return document.getElementById('step-shown').textContent"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs = [make_run(folder / "grpo", dra=False), make_run(folder / "dra")]
    dump = runs[0] / "validation" / "3.jsonl"
    dump.write_text("".join(line for line in dump.read_text().splitlines(True) if "Question 0" not in line))
    assert main(["report", "--out", str(folder / "report.html"), *map(str, runs)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    started = chromium(tmp_path_factory.mktemp("profile"))
    if started is None:
        pytest.skip("no chromium and chromedriver")
    yield started
    started.quit()


@pytest.fixture
def browser(driver: webdriver.Chrome) -> Iterator[Browser]:
    yield Browser(driver)
    assert driver.get_log("browser") == []  # errors of the page, and what it could not fetch


def test_curves_of_all_runs_lie_over_each_other(browser: Browser, report: Path) -> None:
    browser.open(report)
    traces = browser.drawn(browser.chart("Training reward"))
    assert [trace["name"] for trace in traces] == ["grpo", "dra"]
    assert traces[1]["y"] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8]
    assert len({trace["colour"] for trace in traces}) == 2


def test_what_happened_is_said_on_top(browser: Browser, report: Path) -> None:
    browser.open(report)
    (said,) = browser.texts("main > p:first-child")
    assert said.startswith("Effective paths: too few steps to say (")
    assert "training reward" not in said


def test_shares_of_clusters_are_areas_run_beside_run(browser: Browser, report: Path) -> None:
    browser.open(report)
    assert browser.texts("#shares-validation .panel p") == ["grpo", "dra"]
    assert browser.texts("#shares-training .panel p") == ["dra"]
    for panel in range(3):
        shares = browser.drawn(f"share-{panel}")
        assert shares[0]["name"] == "largest"
        assert [sum(values) for values in zip(*(share["y"] for share in shares), strict=True)] == pytest.approx(
            [1] * len(shares[0]["x"]), abs=1e-3
        )
    boxes = browser.js(
        "return [...document.querySelectorAll('#shares-validation .plot')].map(e => e.getBoundingClientRect().top)"
    )
    assert boxes[0] == boxes[1]
    names = [found.accessible_name for found in browser.driver.find_elements(By.CSS_SELECTOR, ".panel .plot")]
    assert names[0].endswith("grpo, validation: the largest from 40 % to 100 %")
    browser.driver.find_element(By.CSS_SELECTOR, "#families button").click()
    assert browser.texts("#shares-validation .panel p") == ["", "dra"], "what is taken out of the curves is hidden here"


def test_curves_that_coincide_are_told_apart(browser: Browser, report: Path) -> None:
    browser.open(report)
    captions = browser.texts("#charts figcaption")
    (caption,) = [caption for caption in captions if caption.startswith("Training reward")]
    assert caption.endswith("grpo and dra coincide: the narrower line lies on the wider one")
    at = browser.chart("Training reward")
    below, above = browser.drawn(at)
    assert below["width"] >= above["width"] + 4
    browser.driver.find_element(By.CSS_SELECTOR, "#families li:last-child button").click()
    browser.wait(lambda: [trace["width"] for trace in browser.drawn(at)] == [2])


def test_pass_at_k_is_over_k(browser: Browser, report: Path) -> None:
    browser.open(report)
    at = browser.chart("pass@k")
    assert browser.drawn(at)[0]["x"] == [1, 2, 4, 8]
    ticks = browser.js(
        "return [...document.querySelectorAll('#' + arguments[0] + ' .xtick text')].map(e => e.textContent)", at
    )
    assert ticks == ["1", "2", "4", "8"]


def test_a_prompt_is_shown_side_by_side_for_two_runs_step_by_step(browser: Browser, report: Path) -> None:
    browser.open(report)
    assert browser.texts("#beside option") == ["no other run"], "of training there is one run"
    browser.press("r", "r")
    browser.wait(lambda: browser.texts("#beside option") == ["nothing", "grpo, validation"])
    browser.press("b")
    browser.wait(lambda: browser.texts(".side > h3") == ["dra, validation, step 6", "grpo, validation, step 6"])
    assert len(browser.texts("#group .prompt")) == 1
    assert browser.drawn("heat")[0]["z"] != browser.drawn("heat-beside")[0]["z"]
    ranges = [
        browser.js("return document.getElementById(arguments[0]).layout.yaxis.range", browser.drawn(plot) and plot)
        for plot in ("bars", "bars-beside")
    ]
    assert ranges[0] == ranges[1]
    browser.js("document.getElementById('heat-beside').emit('plotly_click', {points: [{y: '8'}]})")
    assert browser.js(
        "return document.querySelector('.completion.seen').closest('.side') === document.querySelectorAll('.side')[1]"
    )
    browser.press(Keys.ARROW_LEFT)
    browser.wait(lambda: browser.texts(".side > h3") == ["dra, validation, step 3", "grpo, validation, step 3"])
    browser.press("/", *"Question 0", Keys.ESCAPE)
    missing = "has no such prompt at step 3"
    browser.wait(lambda: [missing in side for side in browser.texts(".side")] == [False, True])
    browser.press("b")
    browser.wait(lambda: browser.texts(".side") == [])


def test_the_address_opens_at_what_is_shown(browser: Browser, report: Path) -> None:
    browser.open(report)
    address = "return location.hash"
    assert browser.js(address) == ""
    browser.press(Keys.ARROW_LEFT)
    browser.wait(lambda: browser.js(address) == "#dra:training/5/1")
    browser.press("j")
    browser.wait(lambda: browser.js(address) == "#dra:training/5/2")
    browser.press("r", "r", "b", "k")
    browser.wait(lambda: browser.js(address) == "#dra:validation/6/1/grpo:validation")
    chosen = "return [...document.querySelectorAll('#list button')].findIndex(e => e.ariaCurrent === 'true') + 1"
    for shared, part, step, group, sides in (
        ("#dra:validation/3/2/grpo:validation", "dra, validation", "3", 2, 2),
        ("#grpo/6/4", "grpo, validation", "6", 4, 0),
        ("#dra/4/3", "dra, training", "4", 3, 0),
    ):
        browser.js("location.hash = arguments[0]", shared)
        browser.wait(
            lambda part=part, step=step: browser.texts("#part option:checked") == [part] and browser.step == step
        )
        browser.wait(lambda group=group: browser.js(chosen) == group)
        assert len(browser.texts(".side")) == sides
        assert browser.texts("#missed") == [""]
    browser.js("location.hash = '#dra/5/99'")
    browser.wait(lambda: "step 5, group 99, which this report does not have" in browser.texts("#missed")[0])
    browser.js("location.hash = '#100%/5/1'")
    browser.wait(lambda: browser.texts("#missed")[0].startswith("The address names 100%, which has no groups"))
    browser.driver.get("about:blank")
    browser.driver.get(f"{report.as_uri()}#dra/2/3")
    browser.wait(lambda: browser.step == "2" and browser.js(chosen) == 3)
    browser.wait(lambda: abs(browser.js("return document.getElementById('browser').getBoundingClientRect().top")) < 5)


def test_a_run_can_be_taken_out_of_the_curves(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.driver.find_element(By.CSS_SELECTOR, "#families button").click()
    browser.wait(lambda: [trace["name"] for trace in browser.drawn("chart-0")] == ["dra"])


def test_it_is_used_by_keyboard(browser: Browser, report: Path) -> None:
    browser.open(report)
    assert browser.step == "6"
    assert browser.texts("#part option:checked") == ["dra, training"], "it opens on the last run's last step"
    browser.press("r")
    browser.wait(lambda: browser.texts("#part option:checked") == ["grpo, validation"])
    browser.press(Keys.ARROW_LEFT)
    browser.wait(lambda: browser.step == "3")
    browser.press("r")
    browser.wait(lambda: browser.texts("#part option:checked") == ["dra, validation"])
    assert browser.step == "3", "another run is shown at the same step"
    browser.press("r")
    browser.wait(lambda: browser.texts("#found") == ["3 of 3 groups"])
    browser.press(Keys.ARROW_RIGHT)
    browser.wait(lambda: browser.step == "4")
    browser.press("j", "j", "k")
    browser.wait(
        lambda: browser.js("return document.querySelector('[aria-current=true]').innerText").startswith(
            "What is 1 + 4?"
        )
    )
    browser.press("/", *"2 + 4?")
    browser.wait(lambda: browser.texts("#found") == ["1 of 3 groups"])
    assert browser.texts("#group mark") == ["2 + 4?"]
    browser.press(Keys.ARROW_LEFT)
    assert browser.step == "4", "in the search an arrow moves the cursor"
    browser.press(Keys.ESCAPE, Keys.ARROW_LEFT)
    browser.wait(lambda: browser.step == "3" and browser.texts("#found") == ["3 of 3 groups"])


def test_a_group_that_is_chosen_keeps_the_focus(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.js("document.querySelectorAll('#list button')[1].focus()")
    browser.press(Keys.ENTER)
    current = "return document.activeElement.getAttribute('aria-current') + document.activeElement.innerText"
    assert browser.js(current).startswith("trueWhat is 1 + 6?")
    browser.press("j")
    assert browser.js(current).startswith("trueWhat is 2 + 6?")


def test_pictures_have_words_for_those_who_do_not_see_them(browser: Browser, report: Path) -> None:
    browser.open(report)
    pictures = browser.driver.find_elements(By.CSS_SELECTOR, ".plot")
    assert {picture.aria_role for picture in pictures} <= {"img", "image"}
    names = [picture.accessible_name for picture in pictures]
    assert "Curves of Training reward: grpo from 0.5 to 0.8; dra from 0.5 to 0.8" in names
    assert any(name.startswith("Similarity of 8 completions, in ") for name in names)
    for scrolled in ("prompt", "completion pre"):
        assert browser.js("return document.querySelector('.' + arguments[0]).tabIndex", scrolled) == 0


def contrast(one: str, other: str) -> float:
    """WCAG's, of two colours as CSS says them."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_runs_bars_and_clusters_have_colours_of_their_own_that_can_be_seen(
    browser: Browser, tmp_path: Path, dark: bool
) -> None:
    runs = [make_run(tmp_path / name, steps=1) for name in "abcdefgh"]
    assert main(["report", "--out", str(tmp_path / "report.html"), "--encoder", "none", *map(str, runs)]) == 0
    browser.open(tmp_path / "report.html", dark=dark)
    computed = "return [...document.querySelectorAll(arguments[0])].map(e => getComputedStyle(e)[arguments[1]])"
    of_runs = browser.js(computed, "#families i", "backgroundColor")
    of_clusters = set(browser.js(computed, ".completion", "borderTopColor"))
    (panel,) = set(browser.js(computed, "figure", "backgroundColor"))
    browser.drawn("bars")
    bars = browser.js("return [...document.querySelectorAll('#bars .point path')].map(e => getComputedStyle(e).fill)")
    assert len(set(of_runs)) == 8
    assert len(set(bars)) == 2
    assert set(bars) & set(of_runs) == {of_runs[0]}, "orange is with DRA, in bars and in curves"
    assert len({*of_runs, *of_clusters, *bars}) == 8 + len(of_clusters) + 1
    for colour in (*of_runs, *of_clusters, *bars):
        assert contrast(colour, panel) >= 3, colour


def test_validation_sets_are_told_apart_in_a_legend(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dra=False, steps=1)
    data = {f"val-core/{name}/acc/mean@8": 0.5 for name in "abcd"}
    (run / "metrics.jsonl").write_text(json.dumps({"step": 0, "data": data}) + "\n")
    assert main(["report", "--out", str(tmp_path / "report.html"), "--encoder", "none", str(run)]) == 0
    browser.open(tmp_path / "report.html")
    browser.drawn("chart-0")
    dashes = browser.js(
        "return document.getElementById('chart-0').data.filter(t => t.showlegend !== false)"
        ".map(t => [t.name, t.line.dash])"
    )
    assert dashes == [["a", "solid"], ["b", "dot"], ["c", "dash"], ["d", "dashdot"]]


def test_each_control_can_be_reached_and_has_a_name(browser: Browser, report: Path) -> None:
    browser.open(report)
    for control in browser.driver.find_elements(By.CSS_SELECTOR, "button, select, input"):
        assert control.accessible_name, control.get_attribute("outerHTML")
    seen = set()
    for _ in range(12):
        browser.press(Keys.TAB)
        seen.add(
            browser.js("return document.activeElement.id || document.activeElement.parentElement.parentElement.id")
        )
    assert {"families", "part", "step", "search", "list"} <= seen


def test_a_group_shows_its_similarity_its_advantages_and_its_texts(browser: Browser, report: Path) -> None:
    browser.open(report)
    assert browser.texts("#group > .faint") == ["SMI graph_cut, weight inverse, over grpo"]
    (heat,) = browser.drawn("heat")
    assert len(heat["z"]) == 8
    without, with_dra = browser.drawn("bars")
    assert (without["name"], with_dra["name"]) == ("without DRA", "with DRA")
    assert len(without["y"]) == len(with_dra["y"]) == 8
    cards = browser.texts(".completion")
    assert all("<b>" in card and "& so on" in card for card in cards), "texts are shown, not run"
    browser.js("document.getElementById('heat').emit('plotly_click', {points: [{y: '8'}]})")
    assert browser.js("return [...document.querySelectorAll('.completion')].pop().classList.contains('seen')")


def test_a_group_without_scores_says_so(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, groups=1)
    path = run / "groups" / "1.jsonl"
    group = {**json.loads(path.read_text()), "scored": False, "similarity": None, "effective_paths": None}
    path.write_text(json.dumps(group))
    assert main(["report", "--out", str(tmp_path / "report.html"), str(run)]) == 0
    browser.open(tmp_path / "report.html")
    assert browser.texts("#group > .faint")[0].startswith("not scored: mean weight of the others")
    assert browser.texts("#list .faint")[0].endswith("rewarded, not scored")
    assert browser.drawn("bars")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_light_and_dark(browser: Browser, report: Path, dark: bool, tmp_path: Path) -> None:
    browser.open(report, width=420, height=800, dark=dark)
    browser.driver.find_element(By.LINK_TEXT, "Groups").click()
    browser.wait(lambda: browser.js("return document.getElementById('browser').getBoundingClientRect().top") < 800)
    browser.drawn("heat")
    for plot in browser.js("return [...document.querySelectorAll('#charts .plot')].map(e => e.id)"):
        browser.drawn(plot)
    past = (
        "const right = (e) => e.getBoundingClientRect().right;"
        "return [...document.querySelectorAll('.plot')]"
        ".filter(e => right(e.querySelector('.main-svg')) > right(e.closest('figure'))).map(e => e.id)"
    )
    assert browser.js(past) == []
    assert browser.js("return document.documentElement.scrollWidth") == 420
    paper, ink = browser.js("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
    light = [sum(map(int, colour[4:-1].split(","))) / 765 for colour in (paper, ink)]
    assert (light[0] < 0.2 and light[1] > 0.8) if dark else (light[0] > 0.9 and light[1] < 0.2)
    assert browser.driver.save_screenshot(str(tmp_path / "phone.png"))


def test_it_opens_without_the_groups_of_a_run(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dra=False, steps=2)
    shutil.rmtree(run / "validation")
    assert main(["report", "--out", str(tmp_path / "report.html"), str(run)]) == 0
    browser.open(tmp_path / "report.html")
    assert browser.js("return document.getElementById('browser').hidden") is True
    assert browser.drawn("chart-0")
