"What a gate says: a table, JUnit XML and annotations of GitHub. It imports nothing that takes time."
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from .gate import Check

__all__ = ['failure_table', 'junit_xml', 'github_annotations']

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


def _xml(text):
    "Without the characters that XML does not have"
    return ''.join(c if c in '\t\n\r' or 0x20 <= ord(c) < 0xd800 or 0xe000 <= ord(c) < 0xfffe or ord(c) > 0xffff else '?'
                   for c in text)


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


def _data(text): return text.replace('%', '%25').replace('\r', '%0D').replace('\n', '%0A')
def _property(text): return _data(text).replace(':', '%3A').replace(',', '%2C')
