"""Chromium for the tests, on the link page as a person sees it; it runs in whatever network the tests are in."""

import base64
import importlib.util
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from machine import until
from web import PROVIDER, SITE

# A package that carries axe-core's file; what else is in it would ask for more packages.
AXE = Path(importlib.util.find_spec("axe_playwright_python").origin).with_name("axe.min.js")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
    "--force-color-profile=srgb", "--hide-scrollbars", "--lang=en",
    # What is not on this machine is not there: a page that asks for it is seen to.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)
# The keystroke-level model (Card, Moran, Newell 1980): seconds of a person for each thing done.
THINK, POINT, CLICK, KEY = 1.35, 1.1, 0.2, 0.28


class Browser:
    """One window. `looks` takes a picture of each state and has axe-core judge it."""

    def __init__(self, folder):
        self.folder = folder
        self.person = 0
        options = webdriver.ChromeOptions()
        options.accept_insecure_certs = True
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for option in (*OPTIONS, f"--user-data-dir={folder}/profile"):
            options.add_argument(option)
        self.driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
        self.driver.set_page_load_timeout(20)

    def stop(self):
        self.driver.quit()

    def new(self, width=640, height=900, dark=False, javascript=True):
        """As somebody else's browser, who has never been here."""
        self.person = 0
        self.tell("Network.clearBrowserCookies")
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.dark(dark)
        self.tell("Emulation.setScriptExecutionDisabled", value=not javascript)
        self.driver.get("about:blank")
        self.complaints()
        return self

    def dark(self, on=True):
        self.tell("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if on else "light"}])

    def tell(self, command, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def open(self, path="/telegram"):
        self.driver.get(SITE + path)

    def log_in(self, subject, path="/telegram"):
        """Through the OpenID provider, to which the page leads."""
        self.open(path)
        assert self.driver.current_url.startswith(PROVIDER), self.driver.current_url
        self.type("[name=sub]", subject, Keys.ENTER)
        until(lambda: self.driver.current_url.startswith(SITE), 10, "the way back from the login")

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector):
        self.person += THINK + POINT + CLICK
        # The card may be made anew between the two; what is gone was not clicked.
        self._until(lambda: self.shown(selector).click() or True, 10, f"{selector} can be clicked")

    def type(self, selector, *keys):
        self.person += THINK + POINT + CLICK
        field = self.shown(selector)
        field.clear()
        self.press(*keys, into=field)

    def press(self, *keys, into=None):
        """Keys to what has the focus."""
        self.person += THINK + KEY * sum(map(len, keys))
        if into:
            into.send_keys(*keys)
        else:
            webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def tab_to(self, identity, most=20):
        """Reach an element by the Tab key alone; it must show that it has the focus."""
        for _ in range(most):
            self.press(Keys.TAB)
            if self.focus() == identity:
                outline = self.driver.execute_script(
                    "const s = getComputedStyle(document.activeElement);"
                    "return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0 || s.boxShadow !== 'none'")
                assert outline, f"#{identity} does not show that it has the focus"
                return
        raise AssertionError(f"#{identity} cannot be reached by Tab")

    def focus(self):
        """The id of what has it, asked in one go: between two the card may be made anew."""
        return self.driver.execute_script("return document.activeElement?.id || ''")

    def shown(self, selector, seconds=10):
        """The first element of that selector that can be seen."""
        def visible():
            found = self.driver.find_elements(By.CSS_SELECTOR, selector)
            return next((element for element in found if element.is_displayed()), None)
        return self._until(visible, seconds, f"{selector} is shown")

    def text(self, selector="body"):
        return self.find(selector).text

    def says(self, part, selector="body", seconds=10):
        """Until that is written there."""
        self._until(lambda: part in self.text(selector), seconds, f"{part!r} is said in {selector}")

    def _until(self, condition, seconds, what):
        def settled():
            try:
                return condition()
            except WebDriverException:  # the page is just changing
                return None
        try:
            return until(settled, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error} in\n{self.text()}") from None

    def complaints(self):
        """Errors in the browser's console since the last call: a broken policy, a request refused."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def looks(self, name):
        """A picture of this state, and nothing for axe-core to find in it."""
        until(lambda: self.driver.execute_script("return document.getAnimations().length === 0"), 5, "still colours")
        width, height = self.driver.execute_script(
            "const end = document.querySelector('main').getBoundingClientRect().bottom;"
            "return [innerWidth, Math.ceil(end + scrollY + 24)]")
        assert self.driver.execute_script("return document.documentElement.scrollWidth") <= width, f"{name}: too wide"
        picture = self.tell("Page.captureScreenshot", captureBeyondViewport=True,
                            clip={"x": 0, "y": 0, "width": width, "height": height, "scale": 1})
        (self.folder / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))
        self.judge(name)

    def judge(self, name):
        self.driver.execute_script(AXE.read_text())
        found = self.driver.execute_async_script("axe.run().then(arguments[0])")
        assert len(found["passes"]) > 5
        wrong = [f"{rule['id']}: {node['html']}" for rule in found["violations"] for node in rule["nodes"]]
        assert not wrong, f"{name}: {wrong}"
