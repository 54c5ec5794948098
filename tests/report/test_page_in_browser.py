"""The page in headless Chromium, from disk: light, dark, and on a phone 390 pixels wide."""

import pytest

from lmjax.report.charts import DARK, LIGHT
from lmjax.report.page import write_report
from lmjax.settings import DataSettings, EvaluationSettings, Pretrain, SourceSettings

pytestmark = pytest.mark.browser

LONG = "W" * 400
EVIL = f"<img src='http://localhost:9/x.png' onerror='document.title=1'><script>document.title=2</script>{LONG}"
NARROW_PATH = "data/" + "x" * 120 + ".jsonl.gz"


@pytest.fixture
def report(make_workdir, make_log):
    """A report with everything that could make a page too wide or make it load something."""
    sources = tuple(SourceSettings("jsonl", f"{i}{NARROW_PATH}", weight=0.5) for i in range(2))
    recipe = Pretrain(
        name="n" * 60, data=DataSettings(train=sources), evaluation=EvaluationSettings(prompts=(f"prompt {LONG}",))
    )
    lines = make_log(400, sample=EVIL)
    lines.append({"step": 410, "loss": float("nan"), "epochs/0": 0.5, "epochs/1": 0.5, "skipped": 1.0})
    return write_report(make_workdir(lines, recipe=recipe, environment={"jax": "0.10.2", "devices": "8 x TPU v5"}))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_loads_alone_and_fits(browser, report, width, scheme):
    browser.open(report, width=width, scheme=scheme)
    browser.value("for (const closed of document.querySelectorAll('details')) closed.open = true")
    requests = [event["request"]["url"] for method, event in browser.events if method == "Network.requestWillBeSent"]
    assert requests == [report.as_uri()]
    spoken = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert [event for method, event in browser.events if method in spoken] == []
    assert browser.value("document.documentElement.scrollWidth") == width == browser.value("innerWidth")
    outside = "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
    unscrolled = f"{outside}.filter(e => !e.closest('.scroll') && !e.closest('svg')).map(e => e.outerHTML.slice(0, 80))"
    assert browser.value(unscrolled) == []
    assert browser.value("document.title").startswith("nnn"), "a sample ran as a script"
    assert browser.value("document.querySelector('.sample').innerText") == f"Once {EVIL} 400"


@pytest.mark.parametrize(("scheme", "palette"), [("light", LIGHT), ("dark", DARK)])
def test_page_and_charts_take_the_palette_of_the_scheme(browser, report, scheme, palette):
    browser.open(report, width=1280, scheme=scheme)

    def colour(selector: str, name: str) -> str:
        return browser.value(f"getComputedStyle(document.querySelector(\"{selector}\")).getPropertyValue('{name}')")

    def rgb(role: str) -> str:
        return f"rgb({', '.join(str(int(palette[role][i : i + 2], 16)) for i in (1, 3, 5))})"

    assert colour("body", "background-color") == rgb("paper")
    assert colour("h1", "color") == rgb("ink")
    assert colour("svg.wide text", "fill") == rgb("muted")
    for role in ("first", "second"):
        assert colour(f"svg.wide path[style*='stroke: var(--{role})']", "stroke") == rgb(role)
        assert colour(f".key i.{role}", "background-color") == rgb(role)


@pytest.mark.parametrize(("width", "shown"), [(390, "narrow"), (768, "wide"), (1280, "wide")])
def test_the_letters_in_the_charts_are_legible_at_every_width(browser, report, width, shown):
    browser.open(report, width=width)
    drawings = "[...document.querySelectorAll('.plot svg')].filter(e => e.getBoundingClientRect().width > 0)"
    assert browser.value(f"{drawings}.map(e => e.getAttribute('class'))") == [shown, "small", "small", "small"]
    letters = "[...e.querySelectorAll('text')].map(t => parseFloat(getComputedStyle(t).fontSize) * e.getScreenCTM().a)"
    sizes = browser.value(f"{drawings}.map(e => {letters})")
    assert all(len(of_chart) > 5 for of_chart in sizes)
    assert all(9.5 <= size <= 16 for of_chart in sizes for size in of_chart), sizes
