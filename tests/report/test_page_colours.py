"""The page in a browser: its colours say what they should, to every eye, in light and in dark."""

from __future__ import annotations

import numpy as np
import pytest

from agents.credit import read_tokens

pytestmark = pytest.mark.browser

Colour = list[float]

COLOURS_OF = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
return [...document.querySelectorAll(arguments[0])].map((e) => {
  const style = getComputedStyle(e);
  return [style.color, style.backgroundColor].map((colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  });
});
"""
"""Text and ground of elements, each as red, green, blue and alpha of sRGB, 0 … 1."""

DICHROMATS = {
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
"""Machado et al. 2009, https://doi.org/10.1109/TVCG.2009.113, severity 1: on linear sRGB."""

XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
"""From linear sRGB, white D65."""


def linear(colour: Colour) -> np.ndarray:
    c = np.array(colour[:3])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one: Colour, other: Colour) -> float:
    """By WCAG 2: 4.5 is enough for text."""
    low, high = sorted(float(np.array(XYZ)[1] @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(colour: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB."""
    xyz = np.array(XYZ) @ np.clip(colour, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_colours_have_the_sign_and_the_size_of_their_number(browser, page, run):
    browser.open(page)
    browser.choose("scale", "response")
    browser.choose("colour", "advantage")
    values = read_tokens(run).columns_of(0)["advantage"]
    names = browser.map("#chips .chip", "className")
    assert [("less" in name.split()) for name in names] == (values < 0).tolist()
    assert [("more" in name.split()) for name in names] == (values >= 0).tolist()
    amounts = browser.map("#chips .chip", "style.getPropertyValue('--amount')")
    expected = 100 * np.abs(values) / np.abs(values).max()
    assert [float(a.rstrip("%")) for a in amounts] == pytest.approx(expected.tolist(), abs=0.1)
    browser.choose("colour", "entropy")
    assert browser.count("#chips .chip.amount") == len(values)
    browser.choose("colour", "clip")
    assert browser.count("#chips .chip.unknown") == len(values)


def test_the_scale_stays_while_the_sliders_move(browser, page):
    browser.open(page)
    browser.choose("colour", "advantage")
    legend = browser.text("#legend")
    browser.choose("lambda", 0.1)
    assert browser.text("#legend") == legend and "advantage A" in legend


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_on_every_ground_can_be_read(browser, page, scheme):
    browser.open(page, scheme=scheme)
    browser.choose("scale", "response")
    for colour in ("advantage", "entropy"):
        browser.choose("colour", colour)
        pairs = browser.js(COLOURS_OF, "#chips .chip")
        assert min(contrast(text, ground) for text, ground in pairs) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_more_and_less_differ_for_colour_blind_eyes(browser, page, scheme):
    browser.open(page, scheme=scheme)
    browser.js(
        "for (const kind of ['more', 'less']) {"
        "const probe = document.createElement('span'); probe.className = 'probe chip ' + kind;"
        "probe.style.setProperty('--amount', '100%'); document.body.append(probe); }"
    )
    (_, more), (_, less) = browser.js(COLOURS_OF, ".probe")
    for matrix in DICHROMATS.values():
        seen = [lab(np.array(matrix) @ linear(colour)) for colour in (more, less)]
        assert np.linalg.norm(seen[0] - seen[1]) > 40


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_colour_scheme(browser, page, scheme):
    browser.open(page, scheme=scheme)
    ((text, ground),) = browser.js(COLOURS_OF, "body")
    assert (sum(text) > sum(ground)) == (scheme == "dark")
    assert contrast(text, ground) > 10
    assert contrast(browser.js(COLOURS_OF, ".lead")[0][0], ground) >= 4.5
