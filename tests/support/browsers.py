"Pages in headless Chromium."
import shutil
from pathlib import Path

import pytest

FLAGS = [
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
    '--disable-background-networking', '--disable-component-update']


def _program(*names): return next((path for name in names if (path := shutil.which(name))), None)


def start_browser(profile):
    "For a fixture: a browser with its profile in a folder; skips the test if there is none"
    webdriver = pytest.importorskip('selenium.webdriver', reason="pip install -e '.[dev]'")
    chrome, driver = _program('chromium', 'chromium-browser', 'google-chrome'), _program('chromedriver')
    if not chrome or not driver: pytest.skip('pages are tested in a browser: apt-get install chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in [*FLAGS, f'--user-data-dir={profile}']: options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    d = webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(driver))
    yield d
    d.quit()


def show(browser, page, width=1440, theme='light'):
    "Open a file or an address"
    metrics = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    media = {'prefers-color-scheme': theme, 'prefers-reduced-motion': 'reduce'}
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
    features = [dict(name=name, value=value) for name, value in media.items()]
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=features))
    for log in ('browser', 'performance'): browser.get_log(log)
    browser.get(page if str(page).startswith('http') else f'file://{page}')


def check_accessibility(browser):
    "How many of axe's rules the page passes, and `[rule, element]` of those that it breaks"
    axe = pytest.importorskip('axe_core_python', reason="needs axe-core-python: pip install -e '.[dev]'")
    browser.execute_script(next(Path(axe.__file__).parent.rglob('axe.min.js')).read_text())
    return browser.execute_async_script('''
        const done = arguments[0];
        axe.run().then(r => done([r.passes.length, r.violations.map(v => [v.id, v.nodes[0].html.slice(0, 120)])]))''')
