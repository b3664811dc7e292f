"Names are shown as they are, or refused."
import html.parser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sdfast.data.task import Task
from sdfast.data.text import as_markdown
from sdfast.errors import InputError

FORMULAS = ['=cmd()', "=cmd|' /C calc'!A0", '+1+1', '-2+3', '-', '@SUM(A1)', '\t=1', '\r=1', '＝1+1', '－x', '＠x',
            'walk;=1+1', 'walk; @x', '-1;x']
CONTROLS = ['a\0b', 'a\nb', 'a\rb', 'a\tb', 'a\x1b[31mb', 'a\x7f', 'a\x85b', 'a\u2028b']
INVISIBLES = ['a\u200fb', 'a\u200eb', '\u202egnp.x', 'a\u2066b', 'a\u200bb', '\ufeffa', 'a\xadb']


@pytest.mark.parametrize('name', [*FORMULAS, *CONTROLS, *INVISIBLES, '', ' ', 'path', 'label'])
def test_class_names_that_are_refused(class_csv, name):
    file = class_csv(['good', name, 'fine'])
    with pytest.raises(InputError, match='rename it|contains NUL') as e: Task.from_csv(file)  # csv of 3.10 refuses NUL
    text = str(e.value)
    assert repr(name) in text or 'NUL' in text
    assert text.isprintable()


class Seen(html.parser.HTMLParser):
    "Tags and text of a page"
    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ''
        self.feed(page)

    def handle_starttag(self, tag, attrs): self.tags.append(tag)
    def handle_data(self, data): self.text += data


MARKS = st.text(st.sampled_from('<>&|[]()`*_~$\\!#"\'./:; -ab1é走'), min_size=1, max_size=30)
ANY_TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=9).map(lambda t: f'a{t}b')


@given(st.one_of(MARKS, ANY_TEXT))
@example('<script>alert(1)</script>')
@example(r'\<b>')
@example('_a_ __b__ *c* `d`')
@example('![a](b) [c](javascript:d) <http://e>')
@example('&lt;b&gt;')
@settings(deadline=None, max_examples=300)
def test_escaped_names_are_shown_as_they_are(name):
    from markdown_it import MarkdownIt  # rich brings it
    text = as_markdown(name)
    assert '\n' not in text
    assert not any(c in text for c in '\0\r\u202e\u200f')
    page = MarkdownIt('commonmark').enable('table')  # with raw HTML, as files are shown
    seen = Seen(page.render(f'- test has no clip of {text}, y'))
    assert set(seen.tags) <= {'ul', 'li'}
    if name.isprintable(): assert seen.text.strip() == f'test has no clip of {name}, y'
    row = Seen(page.render(f'| a | b |\n|---|---|\n| x {text} | 1 |'))
    assert row.tags.count('td') == 2
    assert not set(row.tags) - {'table', 'thead', 'tbody', 'tr', 'th', 'td'}


def test_ordinary_names_are_not_escaped():
    names = 'brush_hair', 'ApplyEyeMakeup', 'talk to (e.g., self)', '-1', "massaging person's head", 'test_x'
    for name in names: assert as_markdown(name) == name
