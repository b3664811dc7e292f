"The page in headless Chromium: layout, sorting, hostile text, the policy, accessibility."
import json
import re
import time

import pandas as pd
import pytest
from browsers import check_accessibility, show, start_browser
from helpers import numbered
from made_audit import make_audit
from made_study import CLASSES, EVIL
from processes import wait_for

from sdfast.data.digits import write_video
from sdfast.report.audit_page import write_audit_page
from sdfast.report.load import load_results
from sdfast.report.summary import summary
from sdfast.report.tables import strategy_table

OPEN_DETAILS = "for (const d of document.querySelectorAll('details')) d.open = true;"


@pytest.fixture(scope='module')
def browser(tmp_path_factory): yield from start_browser(tmp_path_factory.mktemp('chromium'))


def requested(browser):
    "Addresses requested since `show`, apart from the page itself and data; and those that the policy stopped"
    events = [json.loads(e['message'])['message'] for e in browser.get_log('performance')]
    urls = {m['params']['requestId']: m['params']['request']['url'] for m in events
            if m['method'] == 'Network.requestWillBeSent'}
    assert urls, 'the log sees requests'
    stopped = {m['params']['requestId'] for m in events
               if m['method'] == 'Network.loadingFailed' and m['params'].get('blockedReason') == 'csp'}
    outside = {i: url for i, url in urls.items() if not url.startswith(('file:', 'data:'))}
    return [u for i, u in outside.items() if i not in stopped], [u for i, u in outside.items() if i in stopped]


TOO_WIDE = '''
    return [...document.querySelectorAll('main *, header *')].filter(e => {
        const r = e.getBoundingClientRect();
        const isOutside = r.width && (r.right > innerWidth + .5 || r.left < -.5);
        return isOutside && !e.closest('.scroll > *, pre > *, svg, .quiet');
    }).map(e => e.outerHTML.slice(0, 90))'''
CUT_TEXT = '''
    return [...document.querySelectorAll('svg.plot')].flatMap(s => {
        const b = s.getBoundingClientRect();
        return [...s.querySelectorAll('text')].filter(t => {
            const r = t.getBoundingClientRect();
            return r.left < b.left - 3 || r.right > b.right + 3 || r.top < b.top - 3 || r.bottom > b.bottom + 3;
        }).map(t => t.textContent);
    })'''
SMALLEST_TEXT = '''
    const sizes = [...document.querySelectorAll('svg.plot text')].map(
        t => parseFloat(getComputedStyle(t).fontSize)*t.getScreenCTM().a || 99);
    return Math.min(...sizes)'''


@pytest.mark.parametrize('width', [375, 1440])
@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_renders_without_errors_overflow_or_requests(browser, page, width, theme):
    show(browser, page, width, theme)
    browser.execute_script(OPEN_DETAILS + 'window.scrollTo(0, 1e6)')
    assert browser.get_log('browser') == []
    assert requested(browser) == ([], [])
    assert browser.execute_script('return document.documentElement.scrollWidth') <= width
    assert browser.execute_script(TOO_WIDE) == []
    assert browser.execute_script(CUT_TEXT) == []
    assert browser.execute_script(SMALLEST_TEXT) >= 6, 'in pixels'
    if width == 375:  # the main table is read without scrolling
        script = "const s = document.querySelector('.main').parentElement; return s.scrollWidth - s.clientWidth"
        assert browser.execute_script(script) <= 0
    def brightness(name):
        colour = browser.execute_script(f'return getComputedStyle(document.body).{name}')
        return sum(map(int, re.findall(r'\d+', colour)[:3]))
    ink, paper = brightness('color'), brightness('backgroundColor')
    assert ink < paper if theme == 'light' else ink > paper


@pytest.mark.parametrize('key', [None, '\ue007', ' '])
def test_sorting_by_mouse_and_keyboard(browser, study, page, key):
    show(browser, page)
    table = summary(load_results(study)[0].rows)
    learned = table.dropna(subset='acc1')

    def order():
        return [e.text.split('\n')[0].strip() for e in browser.find_elements('css selector', '#s1-main tbody th')]

    def press(i):
        button = browser.find_elements('css selector', '#s1-main thead button')[i]
        if key is None: button.click()
        else:
            browser.execute_script('arguments[0].focus()', button)
            button.send_keys(key)
        return [e.get_attribute('aria-sort') for e in browser.find_elements('css selector', '#s1-main thead th')]

    assert order() == list(table.strategy)
    assert press(2) == ['none', 'none', 'descending', 'none']
    assert order() == list(table.sort_values('source_acc', ascending=False).strategy)
    assert 'descending' in browser.find_element('id', 'said').get_attribute('textContent')
    assert press(2)[2] == 'ascending'
    assert order() == list(table.sort_values('source_acc').strategy)
    assert press(1) == ['none', 'descending', 'none', 'none']
    assert order() == [*learned.sort_values('acc1', ascending=False).strategy, 'untouched'], 'without a value last'
    assert press(1)[1] == 'ascending'
    assert order() == [*learned.sort_values('acc1').strategy, 'untouched']
    assert press(1)[1] == 'none'
    assert order() == list(table.strategy)
    assert press(0)[0] == 'ascending'
    assert order() == sorted(table.strategy)


def test_hostile_text_is_text(browser, page):
    show(browser, page)
    time.sleep(.2)
    assert 'owned' not in browser.title.replace(EVIL, '')
    elements = "document.querySelectorAll('img:not([src^=\"data:\"]), main script, main i:not([style])')"
    assert browser.execute_script(f'return {elements}.length') == 0
    seen = browser.execute_script('return document.body.textContent')
    for text in (EVIL, *CLASSES, '<b>1</b>', f'</script>{CLASSES[0]}'): assert text in seen
    labels = browser.execute_script("return [...document.querySelectorAll('svg.plot text')].map(t => t.textContent)")
    assert CLASSES[1] in labels
    assert '<b>1</b>' in labels
    assert requested(browser) == ([], [])


INJECT = '''
    window.broken = [];
    document.addEventListener('securitypolicyviolation', e => broken.push(e.effectiveDirective));
    document.body.insertAdjacentHTML('beforeend',
        '<img src="https://example.invalid/x.png"><img src="x" onerror="window.owned = 1">'
        + '<link rel="stylesheet" href="https://example.invalid/x.css">'
        + '<iframe src="https://example.invalid/"></iframe>');
    const s = document.createElement('script');
    s.textContent = 'window.owned = 2';
    document.body.append(s);'''
FETCH = '''
    const done = arguments[0];
    fetch('https://example.invalid/').then(() => done('sent'), () => done('refused'))'''


def test_the_policy_forbids_what_slips_through(browser, page):
    "If the escaping failed, no script would run but the page's own, and nothing would be loaded"
    show(browser, page)
    browser.execute_script(INJECT)
    assert browser.execute_async_script(FETCH) == 'refused'
    time.sleep(.3)
    stopped = {'img-src', 'connect-src', 'script-src-elem', 'script-src-attr', 'style-src-elem', 'frame-src'}
    assert stopped <= set(browser.execute_script('return broken'))
    assert browser.execute_script('return window.owned') is None
    sent, stopped = requested(browser)
    assert sent == []
    assert 'https://example.invalid/x.png' in stopped


def test_picking(browser, page):
    show(browser, page)
    button = browser.find_element('css selector', '.key button[data-pick=l2sp]')
    button.click()
    buttons = browser.find_elements('css selector', 'button[data-pick=l2sp]')
    assert {b.get_attribute('aria-pressed') for b in buttons} == {'true'}
    time.sleep(.3)
    def opacity(strategy):
        mark = f"document.querySelector('svg.plot [data-s={strategy}]')"
        return browser.execute_script(f'return getComputedStyle({mark}).opacity')
    assert opacity('l2sp') == '1'
    assert opacity('self_distill') == '0.1'
    button.click()
    assert not browser.find_elements('css selector', '.study.on')


def test_copying(browser, study, page):
    show(browser, page)
    table = summary(load_results(study)[0].rows, folder=study)
    main = strategy_table(table, ['acc1', 'source_acc', 'source_probe', 'mcnemar'])
    permissions = dict(permissions=['clipboardReadWrite', 'clipboardSanitizedWrite'])
    browser.execute_cdp_cmd('Browser.grantPermissions', permissions)
    read = 'const done = arguments[0]; navigator.clipboard.readText().then(done, e => done("no: " + e))'
    for n, text in ((1, main.to_markdown()), (2, main.to_latex())):
        copy = browser.find_element('css selector', f'button[data-copy=s1-text-{n}]')
        copy.click()
        time.sleep(.2)
        assert copy.text == 'Copied'
        assert browser.execute_async_script(read).replace('\r\n', '\n') == text


def test_saving_as_csv(browser, study, page, tmp_path):
    "The file that is saved holds all measures of the table"
    browser.execute_cdp_cmd('Browser.setDownloadBehavior', dict(behavior='allow', downloadPath=str(tmp_path)))
    show(browser, page)
    browser.find_element('css selector', 'button[data-save]').click()
    file = wait_for(lambda: next(iter(tmp_path.glob('*.csv')), None), 20)
    saved, table = pd.read_csv(file), summary(load_results(study)[0].rows, folder=study)
    assert list(saved.strategy) == list(table.strategy)
    assert saved.source_acc.tolist() == pytest.approx(table.source_acc.tolist(), rel=1e-5)
    assert set(saved.columns) == set(table.columns)


@pytest.mark.parametrize('width, theme', [(1440, 'light'), (375, 'dark')])
def test_the_page_is_accessible(browser, page, width, theme):
    show(browser, page, width, theme)
    browser.execute_script(OPEN_DETAILS)
    n_passed, violations = check_accessibility(browser)
    assert n_passed > 15
    assert violations == []


def test_screen_readers_and_keyboards(browser, page):
    show(browser, page)
    browser.find_element('css selector', 'body').send_keys('\ue004')
    first = browser.execute_script('return document.activeElement.className')
    assert first == 'skip', 'the first stop is the link to the results'
    plots = browser.execute_script('''
        return [...document.querySelectorAll('svg.plot')].map(
            s => [s.getAttribute('role'), s.querySelector('title').textContent])''')
    for role, title in plots:
        assert role == 'img'
        assert len(title) > 40


@pytest.mark.parametrize('width', [390, 1400])
def test_the_page_of_an_audit(browser, tmp_path, width):
    videos = [tmp_path/f'{i}.mp4' for i in range(5)]
    for file in videos: write_video(file, numbered(8))
    make_audit(tmp_path/'audit', videos)
    show(browser, write_audit_page(tmp_path/'audit'), width)
    browser.execute_script(OPEN_DETAILS + 'window.scrollTo(0, 1e6)')
    assert browser.get_log('browser') == []
    assert requested(browser) == ([], [])
    assert browser.title != 'owned'
    assert browser.execute_script('return document.documentElement.scrollWidth') <= width
    assert browser.execute_script(TOO_WIDE) == []
    assert browser.execute_script(CUT_TEXT) == []
    n_passed, violations = check_accessibility(browser)
    assert n_passed > 15
    assert violations == []
