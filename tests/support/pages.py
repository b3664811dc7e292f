"Markdown pages as tests read them."
import re

# a line break within a paragraph or list item: not after a table's row, not before a row, heading, item, image or fence
BREAK = re.compile(r'(?<=[^\n|])\n *(?!- |[\s|#]|!\[|```)')


def prose(page):
    "Text of a Markdown file, each paragraph and list item on one line"
    return BREAK.sub(' ', page.read_text(encoding='utf-8'))
