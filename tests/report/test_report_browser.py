"""The report in a real browser, where there is one: what is drawn has a size, nothing is asked for.

Screenshots are kept in the folder that EXPUNGE_SCREENSHOTS names.
"""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from forget_reports import render_document, validation, with_oracles, work

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
# Says what it measured to the page around it: a frame has any width, a window has a least one.
PROBE = """<script>
const plots = {};
for (const figure of document.querySelectorAll("figure")) {
  const box = figure.querySelector("svg").getBoundingClientRect();
  plots[figure.id] = [box.width, box.height, figure.querySelectorAll("svg path").length];
}
const asked = performance.getEntriesByType("resource").map(entry => entry.name);
const wide = document.documentElement.scrollWidth;
const text = document.querySelector("figure").textContent;
const bold = document.querySelectorAll("b").length;
parent.postMessage(JSON.stringify({plots, asked, wide, inner: innerWidth, text, bold}), "*");
</script></body>"""
FRAME = """<pre id="probe"></pre>
<script>onmessage = said => { document.getElementById("probe").textContent = said.data }</script>
<iframe src="probed.html" style="width: WIDTHpx; height: 900px; border: 0"></iframe>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser on PATH: looked for {', '.join(BROWSERS)}")
    return found


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("EXPUNGE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def run(browser: str, profile: Path, page: Path, width: int, *options: str) -> str:
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=3000",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
        f"--window-size={width},3000",
        *options,
        page.as_uri(),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout


@pytest.mark.parametrize(
    ("name", "width"), [("oracles", 1200), ("oracles", 400), ("suppressed", 1200)]
)
def test_the_page_in_a_browser(
    browser: str, screenshots: Path, tmp_path: Path, name: str, width: int
) -> None:
    from PIL import Image

    report = with_oracles() if name == "oracles" else validation()
    report["class_names"][0] = '<b>&"$x$'
    text = render_document(report, work())
    page, probed = tmp_path / "page.html", tmp_path / "probed.html"
    page.write_text(text, encoding="utf-8")
    # the page's own policy lets no script run, so the probe's copy goes without it
    assert POLICY.search(text)
    probed.write_text(POLICY.sub("", text).replace("</body>", PROBE), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    image = screenshots / f"report-{name}-{width}.png"
    run(browser, tmp_path / "profile", page, width, f"--screenshot={image}")
    dom = run(browser, tmp_path / "profile", tmp_path / "frame.html", 1400, "--dump-dom")

    found = json.loads(unescape(re.findall(r'<pre id="probe">(.*?)</pre>', dom)[0]))
    expected = {"plot-accuracy", "plot-strength", "plot-layers"}
    if name == "oracles":
        expected |= {"plot-attacks", "plot-relearning"}
    assert set(found["plots"]) == expected
    for plot_width, height, paths in found["plots"].values():
        assert plot_width > 0.45 * found["inner"]
        assert height > 0.3 * plot_width
        assert paths > 5
    assert found["asked"] == []
    assert found["wide"] <= found["inner"] == width  # nothing sticks out
    assert '<b>&"$x$' in found["text"]
    assert found["bold"] == 0

    with Image.open(image) as shot:
        assert shot.size == (width, 3000)
        colors = {color for _, color in shot.convert("RGB").getcolors(1 << 24) or []}
    # the bars before and after
    assert {(0x8C, 0x8C, 0x8C), (0x00, 0x72, 0xB2)} <= colors


def test_no_script_runs_in_the_page_itself(browser: str, tmp_path: Path) -> None:
    text = render_document(validation(), work()).replace("</body>", PROBE)
    (tmp_path / "probed.html").write_text(text, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", "800"), encoding="utf-8")
    dom = run(browser, tmp_path / "profile", frame, 1000, "--dump-dom")
    assert '<pre id="probe"></pre>' in dom
