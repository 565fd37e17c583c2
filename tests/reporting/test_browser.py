"""The pages in a browser: nothing is fetched, nothing is wider than a phone, and dark mode changes the colours."""

import pytest

from tests.reporting.test_run_report import a_report
from tests.support.chromium import CHROMIUM, Page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]


def test_a_report_fits_a_phone_and_asks_for_nothing(tmp_path):
    file = tmp_path / "report.html"
    file.write_bytes(a_report().to_html())
    with Page(tmp_path / "profile", size=(390, 844)) as page:
        page.open(file.as_uri())
        page.wait("document.readyState === 'complete'")
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.run("[...document.images].every(image => image.naturalWidth > 0)")
        assert page.run("document.querySelectorAll('figure.chart svg path.line').length") > 5
        light = page.run("getComputedStyle(document.body).backgroundColor")
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        page.call("Emulation.setEmulatedMedia", features=dark)
        assert page.run("getComputedStyle(document.body).backgroundColor") != light
        page.call("Emulation.setEmulatedMedia", media="print", features=dark)  # on paper it is light
        assert page.run("getComputedStyle(document.body).backgroundColor") == light
        assert page.errors == []
        assert {address.partition(":")[0] for address in page.requests} == {"file", "data"}
