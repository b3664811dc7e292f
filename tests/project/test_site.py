"The documentation's site, built and opened in headless Chromium."
import http.server
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from browsers import check_accessibility, show, start_browser

ROOT = Path(__file__).parents[2]
PAGES = ['', 'tutorials/bring_your_encoder/', 'strategies/distillation/', 'api/video/', 'experiments/', 'reports/']

pytestmark = pytest.mark.nightly


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Address of the site; that it builds says that all its links lead somewhere"
    pytest.importorskip('mkdocs', reason="pip install -e '.[dev]'")
    out = tmp_path_factory.mktemp('site')/'site'
    p = subprocess.run([sys.executable, '.ci/site.py', out], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr[-2000:]
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=out)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()


@pytest.fixture(scope='module')
def browser(tmp_path_factory): yield from start_browser(tmp_path_factory.mktemp('chromium'))


@pytest.mark.parametrize('width, theme', [(1400, 'light'), (390, 'dark')])
@pytest.mark.parametrize('page', PAGES)
def test_pages_fit_and_are_accessible(browser, site, page, width, theme):
    show(browser, site + page, width, theme)
    assert browser.execute_script('return document.documentElement.scrollWidth <= innerWidth')
    assert browser.execute_script('return [...document.images].every(i => i.complete && i.naturalWidth)')
    n_passed, violations = check_accessibility(browser)
    assert n_passed > 15
    assert violations == []


def test_code_of_documented_names_is_hidden_and_imports_are_folded(browser, site):
    show(browser, site + 'api/video/')
    text = browser.execute_script('return document.body.innerText')
    assert 'show_doc(' not in text
    assert 'Why no frame can be decoded' in text
    show(browser, site)
    folded = browser.execute_script('return [...document.querySelectorAll("details summary")].map(s => s.innerText)')
    assert {'Imports and settings', 'The code of this result'} == set(folded)


def test_search(browser, site):
    from selenium.webdriver.support.ui import WebDriverWait
    show(browser, site)
    browser.execute_script('document.querySelector(".md-search__input").focus()')
    browser.find_element('css selector', '.md-search__input').send_keys('EMATeacher')
    found = WebDriverWait(browser, 20).until(lambda b: b.find_elements('css selector', '.md-search-result__link'))
    assert any('distill' in f.get_attribute('href') for f in found)


def test_the_page_after_home_is_about_the_users_model(browser, site):
    show(browser, site)
    assert browser.find_element('css selector', '.md-footer__link--next').get_attribute('href').endswith(PAGES[1])
