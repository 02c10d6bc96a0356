"""The documentation builds without warnings, names all that is public, and reads in a browser."""

import functools
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import shutil
import subprocess
import sys
import threading
from urllib.parse import unquote, urlsplit
import zlib

from public import public
import pytest

import egd_optax

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}
# Tables that scroll by themselves, and so hide a column.
CUT = """[...document.querySelectorAll('.bd-article table')].filter(
  table => table.scrollWidth > table.clientWidth + 1).length"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a fresh build."""
    folder = tmp_path_factory.mktemp("site") / "html"
    build = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", folder],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert build.returncode == 0, build.stderr
    return folder


class _Refers(HTMLParser):
    """Collects the anchors of a page, and what it refers to."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.refers = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        wanted = {"a": "href", "img": "src", "link": "href", "script": "src"}.get(tag)
        if attrs.get(wanted):
            self.refers.append(attrs[wanted])


def test_no_link_is_broken_and_no_image_is_missing(site):
    files = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    pages = {path.resolve(): _Refers(path.read_text()) for path in files}
    assert len(pages) > 20
    broken, followed = [], 0
    for path, page in pages.items():
        for refer in page.refers:
            parts = urlsplit(refer)
            if parts.scheme or parts.netloc or refer == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchored = not parts.fragment or target not in pages
            anchored = anchored or unquote(parts.fragment) in pages[target].anchors
            followed += 1
            if not target.is_file() or not anchored:
                broken.append((path.name, refer))
    assert followed > 500
    assert not broken


def test_every_public_name_has_an_entry(site):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    entries = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    names = {f"egd_optax.{name}" for name in egd_optax.__all__} | dict(public()).keys()
    missing = {name for name in names if name not in entries}
    # Shown by the module that they are defined in.
    assert missing <= {"egd_optax.Execution"}
    assert "egd_optax.execution.Execution" in entries


@pytest.fixture(scope="module")
def address(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            del args

    handler = functools.partial(Quiet, directory=site)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "no Chromium on this machine: `make chromium` installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def test_search_finds_evolve(browser, address):
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=evolve")
    page.wait_for_selector("#search-results ul.search li")
    assert "egd_optax.evolve" in page.inner_text("#search-results")
    page.close()


@pytest.mark.parametrize("screen", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_page_fits(browser, address, site, screen):
    page = browser.new_page(viewport=screen)
    names = [path.relative_to(site) for path in site.rglob("*.html") if "_static" not in path.parts]
    too_wide, failed, broken = [], [], []
    page.on("requestfailed", lambda request: failed.append(request.url))
    for name in names:
        page.goto(f"{address}/{name}")
        if page.evaluate("document.documentElement.scrollWidth") > screen["width"]:
            too_wide.append(str(name))
        # On a phone a wide table scrolls by itself.
        if screen is DESKTOP and page.evaluate(CUT):
            too_wide.append(f"a table of {name}")
        if page.evaluate(
            "[...document.images].some(image => image.complete && !image.naturalWidth)"
        ):
            broken.append(str(name))
    page.close()
    assert len(names) > 50
    assert not too_wide
    assert not broken
    assert not [url for url in failed if url.startswith(address)]


def test_a_table_that_hides_a_column_is_found(browser, address):
    page = browser.new_page(viewport=DESKTOP)
    page.goto(f"{address}/index.html")
    assert not page.evaluate(CUT)
    page.evaluate("""document.querySelector('.bd-article table').innerHTML =
      '<tr>' + '<td>a_column_of_some_width</td>'.repeat(30) + '</tr>'""")
    assert page.evaluate(CUT) == 1
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "name",
    ["index", "start/install", "concepts/settings", "api/evolve", "results/quality_methods",
     "notebooks/01_quickstart"],
)  # fmt: skip
def test_a_page_fits_a_phone_and_its_images_load(browser, address, name, scheme, tmp_path):
    page = browser.new_page(viewport=PHONE, color_scheme=scheme)
    failed = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("response", lambda got: failed.append(got.url) if got.status >= 400 else None)
    page.goto(f"{address}/{name}.html")
    page.wait_for_load_state("networkidle")
    assert not [url for url in failed if url.startswith(address)]
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate("[...document.images].every(image => image.complete)")
    shown = (
        "[...document.images].filter(image => image.offsetParent).map(image => image.naturalWidth)"
    )
    assert all(width > 0 for width in page.evaluate(shown))
    # Text stands out from what is behind it, whichever of the two is dark.
    bright = """name => { const found = getComputedStyle(document.body)[name].match(/[0-9.]+/g);
      return found.slice(0, 3).map(Number).reduce((a, b) => a + b) / 3 }"""
    difference = page.evaluate(bright, "color") - page.evaluate(bright, "backgroundColor")
    assert difference > 100 if scheme == "dark" else difference < -100
    page.screenshot(path=tmp_path / f"{name.replace('/', '_')}_{scheme}.png")
    page.close()
