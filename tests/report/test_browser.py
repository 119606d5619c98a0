"""The page as a browser shows it: headless Chromium, two widths, light and dark."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tomfisher.report import write

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTHS = (390, 1280)
INSIDE = ("file:", "data:", "about:")


def found(*names):
    return next(filter(None, map(shutil.which, names)), None)


CHROMIUM = found("chromium", "chromium-browser", "google-chrome")
DRIVER = found("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and not os.environ.get("CI"),
    reason="Chromium and its driver are not installed (apt-get install chromium chromium-driver)",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    assert CHROMIUM and DRIVER, "CI needs Chromium: apt-get install chromium chromium-driver"
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory, module_run):
    return write(module_run, tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.fixture(params=WIDTHS)
def shown(browser, page, request):
    """The page, opened afresh in the light at one width; logs of what went before are thrown away."""
    show(browser, page, request.param)
    return browser


def show(browser, page, width, scheme="light"):
    browser.get(page)
    browser.execute_script("localStorage.clear()")
    browser.get("about:blank")
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"media": "", "features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page)


def requests_of(browser):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def brightness(browser, selector="body", what="backgroundColor"):
    color = browser.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, what
    )
    channels = color[color.index("(") + 1 : -1].split(",")[:3]
    return sum(map(float, channels)) / 3


def press_tab(browser):
    from selenium.webdriver.common.keys import Keys

    browser.switch_to.active_element.send_keys(Keys.TAB)
    return browser.switch_to.active_element


def test_no_console_message_and_no_request_to_anywhere(shown):
    assert shown.get_log("browser") == []
    urls = requests_of(shown)
    assert urls and all(url.startswith(INSIDE) for url in urls)


def test_a_request_would_be_seen_and_is_forbidden(browser, page):
    """The watch of the test above works: an image from elsewhere is noticed, and the page's policy stops it."""
    show(browser, page, WIDTHS[0])
    browser.execute_async_script(
        "const done = arguments[0], image = new Image(); image.onerror = () => done(); "
        "image.src = 'http://127.0.0.1:9/x.png'; document.body.append(image);"
    )
    messages = " ".join(entry["message"] for entry in browser.get_log("browser"))
    assert "127.0.0.1:9" in messages and "Content Security Policy" in messages


def test_every_figure_is_seen_and_fits(shown):
    sizes = shown.execute_script(
        "return [...document.querySelectorAll('figure > svg')].map(x => x.getBoundingClientRect())"
        ".map(r => [r.left, r.right, r.width, r.height])"
    )
    width = shown.execute_script("return document.documentElement.clientWidth")
    assert len(sizes) == 13
    for left, right, across, down in sizes:
        assert left >= 0 and right <= width and across >= 280 and down >= 120


def test_the_page_does_not_scroll_sideways_and_wide_tables_do(shown):
    assert shown.execute_script(
        "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )
    boxes = shown.execute_script(
        "return [...document.querySelectorAll('table')].map(t => {const b = t.parentElement;"
        "return [b.tabIndex, getComputedStyle(b).overflowX, b.getBoundingClientRect().right]})"
    )
    width = shown.execute_script("return document.documentElement.clientWidth")
    assert boxes and all(tab == 0 and flow == "auto" and right <= width for tab, flow, right in boxes)


def test_letters_in_figures_are_legible(shown):
    """No letter of a figure is drawn smaller than 8 CSS pixels; the tokens on attention maps may be 5."""
    heights = shown.execute_script(
        "return [...document.querySelectorAll('figure > svg')].map(svg => {"
        "const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;"
        "return [svg.closest('figure').id, Math.min(...[...svg.querySelectorAll('text')]"
        ".map(t => scale * parseFloat(getComputedStyle(t).fontSize)))]})"
    )
    assert len(heights) == 13
    assert all(size >= (5 if "maps" in name else 8) for name, size in heights), heights


def test_colours_follow_the_system_and_the_button(browser, page):
    show(browser, page, WIDTHS[1])
    assert brightness(browser) > 240 and brightness(browser, what="color") < 60
    show(browser, page, WIDTHS[1], "dark")
    assert brightness(browser) < 60 and brightness(browser, what="color") > 200
    assert brightness(browser, "figure svg text", "fill") > 200
    button = browser.find_element("id", "theme")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert brightness(browser) > 240 and button.get_attribute("aria-pressed") == "false"
    assert brightness(browser, "figure svg text", "fill") < 60
    assert browser.switch_to.active_element == button  # a press does not throw the keyboard off


def test_the_first_tabs_reach_the_skip_link_the_button_and_the_contents(shown):
    first = press_tab(shown)
    assert first.get_attribute("class") == "skip"
    second = press_tab(shown)
    assert second.get_attribute("id") == "theme"
    third = press_tab(shown)
    assert third.get_attribute("href").endswith("#run1-sweep")


def test_the_skip_link_leads_to_the_content(shown):
    from selenium.webdriver.common.keys import Keys

    press_tab(shown).send_keys(Keys.ENTER)
    assert shown.switch_to.active_element.get_attribute("id") == "content"


def test_the_button_works_from_the_keyboard(shown):
    from selenium.webdriver.common.keys import Keys

    before = brightness(shown)
    press_tab(shown)
    press_tab(shown).send_keys(Keys.SPACE)
    assert before - brightness(shown) > 150


def test_tables_are_tables_to_a_screen_reader(shown):
    nodes = shown.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert roles.count(landmark) == 1
    tables = [node for node in nodes if node["role"]["value"] == "table"]
    assert len(tables) >= 6 and all(node["name"]["value"] for node in tables)
    assert roles.count("columnheader") > 20 and roles.count("rowheader") > 20
    images = [node["name"]["value"] for node in nodes if node["role"]["value"] in ("image", "img")]
    assert len([name for name in images if any(c.isdigit() for c in name)]) == 13


def test_printed_it_is_light_and_whole(browser, page):
    show(browser, page, WIDTHS[1], "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert brightness(browser, what="color") < 60
    hidden = "return getComputedStyle(document.querySelector(arguments[0])).display"
    assert browser.execute_script(hidden, "nav") == browser.execute_script(hidden, "#theme") == "none"
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script("return document.querySelectorAll('details[open]').length") == 0
