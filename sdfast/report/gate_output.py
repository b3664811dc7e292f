"What a gate says: a table, JUnit XML and annotations of GitHub. It imports nothing that takes time."
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from .gate import Check

__all__ = ['failure_table', 'junit_xml', 'github_annotations']

NOT_XML = re.compile('[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]')  # characters that XML does not have
HEADINGS = 'rule', 'checkpoint', 'task', 'class', 'found', 'clips', 'why'


def failure_table(
    checks:Sequence[Check], # From `check_audit`
)->str: # A line for each failed check
    "The checks that failed, as text in columns"
    rows = [HEADINGS, *(_cells(c) for c in checks if c.failed)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    return '\n'.join('  '.join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)


def _cells(c): return c.rule.text, c.after, c.task, c.label or '', c.shown, str(c.clips), c.why


def junit_xml(
    checks:Sequence[Check], # From `check_audit`
)->bytes: # XML
    "The checks as test cases of JUnit, which most CI systems show"
    counts = dict(tests=str(len(checks)), failures=str(sum(c.failed for c in checks)), errors='0')
    root = ET.Element('testsuites', counts)
    suite = ET.SubElement(root, 'testsuite', dict(name='sdfast gate', **counts))
    for c in checks:
        name = c.rule.text if c.label is None else f'{c.rule.text} [{c.label}]'
        case = ET.SubElement(suite, 'testcase', dict(classname=_xml(f'{c.after} on {c.task}'), name=_xml(name)))
        if c.failed: ET.SubElement(case, 'failure', dict(message=_xml(_message(c)))).text = _xml(_message(c))
    return ET.tostring(root, encoding='utf-8', xml_declaration=True)


def _xml(text): return NOT_XML.sub('?', text)


def _message(c):
    where = c.task if c.label is None else f'class {c.label} of {c.task}'
    return f'{c.rule.measure} of {where}: {c.shown} on {c.clips} clips, {c.why}'


def github_annotations(
    checks:Sequence[Check], # From `check_audit`
    audit:str|Path, # Its file, for the annotation
)->str: # A line for each failed check
    "Commands by which GitHub Actions shows failed checks at the top of a run"
    return '\n'.join(f'::error title={_property(f"sdfast gate: {c.rule.text}")}::'
                     f'{_data(f"{c.after}: {_message(c)} ({audit})")}' for c in checks if c.failed)


def count_of(
    n:int, # How many
    noun:str, # Of what, in the singular
)->str: # Such as '1 rule' or '2 rules'
    "Write a number of things"
    return f'{n} {noun}' if n == 1 else f'{n} {noun}s'


def _data(text): return text.replace('%', '%25').replace('\r', '%0D').replace('\n', '%0A')
def _property(text): return _data(text).replace(':', '%3A').replace(',', '%2C')
