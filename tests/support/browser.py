"""A headless Chromium for tests of pages: Debian's `chromium` and `chromium-driver`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

__all__ = ["Browser"]

_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--window-size=1280,900", "--disable-background-networking"),
)


class Browser:
    """A browser with one page at a time.

    Raises:
        RuntimeError: there is no Chromium, or no driver of it.
    """

    def __init__(self) -> None:
        programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
        missing = [name for name, path in programs.items() if path is None]
        if missing:
            raise RuntimeError(f"{missing} not found: apt-get install chromium chromium-driver")
        options = Options()
        options.binary_location = programs["chromium"]
        for option in _OPTIONS:
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(programs["chromedriver"]))

    def open(self, page: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Open a page and wait until its script is done."""
        self.size(width, height)
        self.scheme(scheme)
        self.driver.get(page.as_uri())
        self.js("window.scrollTo(0, 0)")
        assert self.js("return document.documentElement.dataset.ready") == "yes", self.errors()

    def size(self, width: int, height: int = 900) -> None:
        """Of the window, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, name: str) -> None:
        """Prefer a colour scheme, "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def js(self, code: str, *arguments: Any) -> Any:
        """Run JavaScript; what it returns."""
        return self.driver.execute_script(code, *arguments)

    def errors(self) -> list[str]:
        """What the console has said since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def press(self, *keys: str) -> None:
        """Press keys one after another, wherever the focus is."""
        for key in keys:
            webdriver.ActionChains(self.driver).send_keys(key).perform()

    def choose(self, control: str, value: Any) -> None:
        """Give a control another value, as a hand would."""
        self.js(
            "const c = document.getElementById(arguments[0]); c.value = arguments[1];"
            "for (const e of ['input', 'change']) c.dispatchEvent(new Event(e, {bubbles: true}));",
            control,
            str(value),
        )

    def text(self, selector: str) -> str:
        """The text of an element."""
        return self.texts(selector)[0]

    def texts(self, selector: str) -> list[str]:
        """The texts of elements."""
        return self.map(selector, "textContent")

    def map(self, selector: str, member: str) -> list[Any]:
        """Something of each element: a property, or a call, as `getAttribute('class')`."""
        return self.js(
            f"return [...document.querySelectorAll(arguments[0])].map((e) => e.{member})", selector
        )

    def count(self, selector: str) -> int:
        """How many elements there are."""
        return len(self.map(selector, "tagName"))

    def click(self, selector: str, number: int = 0) -> None:
        """Click on one of the elements."""
        self.js("document.querySelectorAll(arguments[0])[arguments[1]].click()", selector, number)

    def focus(self, selector: str) -> None:
        """Give an element the focus."""
        self.js("document.querySelector(arguments[0]).focus()", selector)

    def close(self) -> None:
        """End it."""
        self.driver.quit()
