"""The page of a run in a real browser (headless Chromium): sorting, filtering, keyboard, narrow screens, dark, paper.

Skipped where there is no browser:  apt-get install chromium chromium-driver
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "demo"
CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no headless browser: apt-get install chromium chromium-driver"
)
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the extra test has it)")

MAIN = "#table ~ .scroll table"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed result of the demo with pictures of its own and its page; figures are left out but for those with faces."""
    import numpy as np
    from PIL import Image

    from deidbench.report import figures, write_report

    folder = tmp_path_factory.mktemp("browser") / "run"
    shutil.copytree(REFERENCE, folder)
    record = json.loads((folder / "run.json").read_text("utf-8"))
    (folder / "samples").mkdir()
    Image.fromarray(np.full((112, 92, 3), 90, np.uint8)).save(folder / "samples" / "x.png")
    labels = [m["label"] for m in record["methods"]]
    rows = [{"label": x, "slug": x, "files": ["x.png"] * 6, "statuses": ["ok"] * 6} for x in labels]
    index = {"faces": True, "columns": [f"s{i}/1" for i in range(6)], "rows": rows}
    (folder / "samples" / "index.json").write_text(json.dumps(index), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "KINDS", ("svg", "png"))
        write_report(folder, formats=("html",), faces=True)
    return folder


@pytest.fixture(scope="module")
def open_page(run: Path) -> Iterator[Callable[..., Any]]:
    """Opens the page: at a width, dark, without scripts.  One browser per kind."""
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    drivers: dict[bool, Any] = {}

    def start(scripts: bool) -> Any:
        options = Options()
        options.binary_location = CHROMIUM or ""
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        if not scripts:
            options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        return webdriver.Chrome(options=options, service=Service(DRIVER))

    def page(width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True) -> Any:
        if scripts not in drivers:
            drivers[scripts] = start(scripts)
        driver = drivers[scripts]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
        driver.get((run / "report.html").as_uri())
        return driver

    yield page
    for driver in drivers.values():
        driver.quit()


def shown(driver: Any, table: str = MAIN) -> list[str]:
    """The first cells of the rows that can be seen, top down."""
    return driver.execute_script(  # type: ignore[no-any-return]
        "return [...document.querySelector(arguments[0]).tBodies[0].rows].filter((r) => r.offsetParent !== null)"
        ".map((r) => r.cells[0].dataset.value)",
        table,
    )


def said(driver: Any) -> str:
    return str(driver.execute_script("return document.querySelector('.filter output').value"))


def part(driver: Any, css: str) -> Any:
    return driver.find_element("css selector", css)


def press(driver: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def column(driver: Any, i: int) -> list[float | None]:
    """Values of a column of the main table, of the rows that can be seen."""
    return [
        None if v == "" else float(v)
        for v in driver.execute_script(
            "return [...document.querySelector(arguments[0]).tBodies[0].rows].filter((r) => !r.hidden)"
            ".map((r) => r.cells[arguments[1]].dataset.value)",
            MAIN,
            i,
        )
    ]


def test_it_loads_nothing_and_no_policy_is_broken(open_page: Callable[..., Any]) -> None:
    driver = open_page()
    driver.get_log("performance")
    driver.get(driver.current_url)
    assert "deidbench" in driver.title
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = {e["params"]["request"]["url"].partition(":")[0] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked <= {"file", "data"}
    assert "file" in asked, "requests are seen at all"
    files = [e for e in events if e["method"] == "Network.requestWillBeSent" and e["params"]["request"]["url"][:5] == "file:"]
    assert len(files) == 1
    assert driver.get_log("browser") == []
    width = driver.execute_script("return Math.min(...[...document.images].map((i) => i.naturalWidth))")
    assert width > 100, "every picture is one"
    driver.execute_script("const s = document.createElement('script'); s.textContent = 'window.x = 1'; document.body.append(s)")
    assert driver.execute_script("return window.x") is None
    assert "Content Security Policy" in driver.get_log("browser")[0]["message"], "and a foreign script would be refused"


def test_a_click_sorts_a_second_turns_a_third_restores(open_page: Callable[..., Any]) -> None:
    driver = open_page()
    before = shown(driver)
    button = part(driver, f"{MAIN} th[data-column='1'] button")
    button.click()
    values = column(driver, 1)
    assert values == sorted(values) and len(set(values)) > 3  # type: ignore[type-var]
    assert "sorted by Worst-case rank-1" in said(driver) and "lowest first" in said(driver)
    assert part(driver, f"{MAIN} th[data-column='1']").get_attribute("aria-sort") == "ascending"
    button.click()
    assert column(driver, 1) == values[::-1] or column(driver, 1) == sorted(values, reverse=True)  # type: ignore[type-var]
    button.click()
    assert shown(driver) == before
    assert driver.execute_script("return document.querySelectorAll('[aria-sort]').length") == 0


def test_cells_without_a_value_stay_last_either_way(open_page: Callable[..., Any]) -> None:
    driver = open_page()
    driver.execute_script("document.querySelector(arguments[0]).tBodies[0].rows[2].cells[1].dataset.value = ''", MAIN)
    button = part(driver, f"{MAIN} th[data-column='1'] button")
    for _ in range(2):
        button.click()
        assert column(driver, 1)[-1] is None
        assert None not in column(driver, 1)[:-1]


def test_typing_filters_and_sorting_keeps_the_filter(open_page: Callable[..., Any]) -> None:
    driver = open_page()
    total = len(shown(driver))
    assert said(driver) == f"{total} rows"
    field = part(driver, ".filter input[type=search]")
    field.send_keys("BLUR, mask")
    assert shown(driver) == ["mask", "blur 0.03", "blur 0.06", "blur 0.12"]
    assert said(driver) == f"4 of {total} rows"
    part(driver, f"{MAIN} th[data-column='0'] button").click()
    assert shown(driver) == ["blur 0.03", "blur 0.06", "blur 0.12", "mask"]
    assert said(driver).startswith(f"4 of {total} rows, sorted by Method")
    field.send_keys(" 0.9")
    assert shown(driver) == ["blur 0.03", "blur 0.06", "blur 0.12"], "both words of an alternative must occur"
    field.send_keys("\ue00c")  # Escape
    assert len(shown(driver)) == total
    field.send_keys("no such method")
    assert shown(driver) == [] and said(driver).startswith(f"0 of {total} rows")
    part(driver, ".filter button").click()
    assert len(shown(driver)) == total
    assert driver.switch_to.active_element == field


def test_controls_can_be_hidden_and_columns_chosen(open_page: Callable[..., Any]) -> None:
    driver = open_page()
    total = len(shown(driver))
    part(driver, ".filter input[type=checkbox]").click()
    assert len(shown(driver)) == total - 2 and "original" not in shown(driver)
    part(driver, ".filter input[type=checkbox]").click()
    part(driver, ".filter label:nth-of-type(2) input").send_keys("worst, rank-1 dlib")
    heads = driver.execute_script(
        "return [...document.querySelector(arguments[0]).tHead.querySelectorAll('th')].filter((h) => h.offsetParent !== null)"
        ".map((h) => [h.textContent.trim().replace(/\\s+/g, ' ').replace(/\u2011/g, '-'), h.colSpan])",
        MAIN,
    )
    assert heads == [["Method", 1], ["Worst-case rank-1 % ↓", 1], ["Rank-1, ignorant % ↓", 1], ["dlib", 1]]
    widths = driver.execute_script(
        "return [...new Set([...document.querySelector(arguments[0]).rows].slice(2).map((r) =>"
        " [...r.cells].filter((c) => !c.hidden).length))]",
        MAIN,
    )
    assert widths == [3], "body and foot have as many cells as the head"
    assert "2 of " in said(driver)


def test_every_table_has_its_own_filter(open_page: Callable[..., Any]) -> None:
    driver = open_page()
    bars, tables = driver.execute_script(
        "return [document.querySelectorAll('.filter').length, [...document.querySelectorAll('.scroll > table')]"
        ".filter((t) => t.tBodies[0].rows.length >= 4).length]"
    )
    assert bars >= tables > 10
    ids = driver.execute_script("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    field = part(driver, "#failures ~ .filter input")
    field.send_keys("mask")
    rows = [r.text.split()[0] for r in driver.find_elements("css selector", "#failures ~ .scroll tbody tr") if r.text]
    assert rows[0] == "mask"
    assert len(shown(driver)) == 12, "the others keep theirs"


def test_the_keyboard_reaches_and_works_everything(open_page: Callable[..., Any]) -> None:
    driver = open_page()
    where = "return document.activeElement.closest('.filter, thead, .scroll, nav')?.className + '|' + document.activeElement.tagName"
    seen = []
    for _ in range(20):
        press(driver, "\ue004")  # Tab
        seen.append(driver.execute_script(where))
    links = [s for s in seen if s.endswith("|A")]
    assert seen[: len(links)] == links and len(links) == 8, "first the sections"
    assert [s for s in seen if s.startswith("filter")] == ["filter|INPUT"] * 3
    after = seen.index("filter|INPUT") + 3
    assert seen[after] == "scroll|DIV", "then the table as a whole, which arrows scroll"
    assert seen[after + 1].endswith("|BUTTON"), "then its headings"
    driver.execute_script("document.querySelector(arguments[0]).focus()", f"{MAIN} th[data-column='1'] button")
    press(driver, "\ue007")  # Enter
    assert column(driver, 1) == sorted(column(driver, 1))  # type: ignore[type-var]
    press(driver, " ")
    assert column(driver, 1) == sorted(column(driver, 1), reverse=True)  # type: ignore[type-var]
    outline = driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "and one sees where one is"
    assert (
        driver.execute_script("return document.querySelector('.filter output').tagName") == "OUTPUT"
    )  # a live region by itself
    labelled = driver.execute_script(
        "return [...document.querySelectorAll('.filter input')].every((i) => i.labels.length === 1)"
    )
    assert labelled


@pytest.mark.parametrize("width", [360, 390, 768])
def test_narrow_screens_scroll_tables_and_not_the_page(open_page: Callable[..., Any], width: int) -> None:
    driver = open_page(width, 800)
    driver.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    inner, content = driver.execute_script(
        "return [document.documentElement.clientWidth, document.documentElement.scrollWidth]"
    )
    assert (inner, content) == (width, width)
    table = driver.execute_script("const s = document.querySelector('.scroll'); return [s.clientWidth, s.scrollWidth]")
    assert table[0] < width < table[1]
    sticky = driver.execute_script(
        "const s = document.querySelector('.scroll'); s.scrollLeft = 300; const n = s.querySelector('tbody .name');"
        "return n.getBoundingClientRect().left - s.getBoundingClientRect().left"
    )
    assert 0 <= sticky <= 2, "the method's name stays in sight"
    if width < 640:
        sources = driver.execute_script("return [...document.images].map((i) => i.currentSrc === i.src)")
        assert not any(sources), "phones get the narrow figures"


def _contrast(a: str, b: str) -> float:
    def light(colour: str) -> float:
        parts = [int(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_texts_can_be_read_by_day_and_by_night(open_page: Callable[..., Any], dark: bool) -> None:
    driver = open_page(dark=dark)
    ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (_contrast(ground, "rgb(0, 0, 0)") < 2) == dark
    for css in ("body", ".ci", "nav a", ".filter label", ".filter input", "caption", "figcaption", "sup", ".notes li"):
        colour = driver.execute_script("return getComputedStyle(document.querySelector(arguments[0])).color", css)
        assert _contrast(ground, colour) >= 4.5, css
    alert = driver.execute_script(
        "const a = getComputedStyle(document.querySelector('.alert')); return [a.backgroundColor, a.color,"
        " getComputedStyle(document.querySelector('.alert strong')).color]"
    )
    assert min(_contrast(alert[0], alert[1]), _contrast(alert[0], alert[2])) >= 4.5
    card = driver.execute_script("return getComputedStyle(document.querySelector('figure .card')).backgroundColor")
    assert card == "rgb(255, 255, 255)", "figures are drawn for white paper"


def test_without_scripts_it_is_whole(open_page: Callable[..., Any]) -> None:
    driver = open_page(scripts=False)
    text = part(driver, "body").text
    assert driver.find_elements("css selector", ".filter, th button") == []
    rows = driver.find_elements("css selector", f"{MAIN} tbody tr")
    assert len([r for r in rows if r.is_displayed()]) >= 12
    assert "Before quoting a figure" in text and "ganonymization" in text


def test_warnings_stand_on_top(open_page: Callable[..., Any]) -> None:
    driver = open_page()
    places = driver.execute_script(
        "return ['.alert', '.headline', '#table', 'figure'].map((c) => document.querySelector(c).getBoundingClientRect().top)"
    )
    assert places == sorted(places)
    assert places[0] < 900, "on the first screen"


def test_paper_has_every_column_and_no_controls(open_page: Callable[..., Any]) -> None:
    driver = open_page()
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not part(driver, ".filter").is_displayed()
    assert not part(driver, "nav").is_displayed()
    overflow = driver.execute_script("return getComputedStyle(document.querySelector('.scroll')).overflowX")
    assert overflow == "visible"
    # 277 mm, what A4 across leaves between the margins
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 1047, "height": 700, "deviceScaleFactor": 1, "mobile": False}
    )
    widths = driver.execute_script("return [...document.querySelectorAll('main > .scroll > table')].map((t) => t.scrollWidth)")
    assert max(widths) <= 1047, "nothing is cut off"
    pdf = base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 50_000
