"Gates: which bound decides, per task and class; JUnit parsed by the standard library, annotations, policies, mistakes."
import json
import xml.etree.ElementTree as ET

import pytest

from sdfast.errors import InputError
from sdfast.report.audit_file import read_audit
from sdfast.report.gate import check_audit, parse_rule, read_policy
from sdfast.report.gate_output import failure_table, github_annotations, junit_xml


def part(value, low=None, high=None):
    low, high = (value, value) if low is None else (low, high)
    return dict(value=value, low=low, high=high)


def change(before, after, low, high):
    d = round(after - before, 9)
    return dict(before=part(before), after=part(after), change=part(d, low, high))


def compared(*after): return dict(before=part(0.), after=part(*after), change=part(*after))


def result(task, probe, classes=None, **more):
    measures = dict(source_probe=probe, drift=compared(.2, .15, .25)) | more
    return dict(after='tuned.pth', task=task, clips=100, groups=50, classes=classes or {}, measures=measures)


@pytest.fixture
def audit():
    "Two tasks: on `a` the probe lost 1 point [-3, 1], and its class walk lost 40; on `b` nothing is lost for sure"
    classes = {'walk': dict(clips=9, groups=9, measures=dict(source_acc=change(.9, .5, -.6, -.2))),
               'sit.down': dict(clips=9, groups=9, measures=dict(source_acc=change(.5, .5, 0., 0.)))}
    row = dict(title='t', about='a', share=True, more_is_better=True, compares=False)
    distance = dict(share=False, more_is_better=False, compares=True)
    measures = dict(source_probe=row, source_acc=row, drift=row | distance, neighbours=row | dict(compares=True))
    results = [result('a', change(.8, .79, -.03, .01), classes, source_acc=change(.8, .79, -.02, 0.)),
               result('folder:/x/b.c', change(.8, .8, -.01, .01), neighbours=compared(.7, .6, .8))]
    return dict(format='sdfast audit', version=1, before=dict(name='base'), measures=measures, results=results)


def failed(audit, *rules): return [(c.task, c.label) for c in check_audit(audit, [*map(parse_rule, rules)]) if c.failed]


def test_the_bound_decides_and_not_the_mean(audit):
    "-1 [-3, 1]: it has not been shown that fewer than 2 points were lost"
    assert failed(audit, 'source_probe < -2') == [('a', None)]
    assert failed(audit, 'source_probe < -3') == []  # the bound is not below
    assert failed(audit, 'source_probe <= -3') == [('a', None)]
    assert failed(audit, 'source_probe < -.5') == [('a', None), ('folder:/x/b.c', None)]
    assert failed(audit, 'source_probe > .5') == [('a', None), ('folder:/x/b.c', None)]
    assert failed(audit, 'source_probe > 1') == []


def test_why_says_what_the_data_show(audit):
    def why(rule): return [c.why for c in check_audit(audit, [parse_rule(rule)]) if c.failed]
    assert why('task:a.probe < -2') == ['cannot be excluded']
    assert why('task:a.probe < -.5') == ['beyond the limit, within the interval']
    assert why('task:a.probe < 2') == ['beyond the limit']
    assert why('class:walk.old_head < -10') == ['beyond the limit']


def test_measures_that_compare_are_judged_by_their_value(audit):
    assert failed(audit, 'drift > .24') == [('a', None), ('folder:/x/b.c', None)]
    assert failed(audit, 'drift > .25') == []
    assert failed(audit, 'neighbours < 65') == [('folder:/x/b.c', None)]
    assert failed(audit, 'neighbours<60') == []


def test_a_class_that_the_average_hides(audit):
    assert failed(audit, 'old_head < -5') == []
    assert failed(audit, 'class:walk.old_head < -5') == [('a', 'walk')]
    assert failed(audit, 'class:*.old_head < -5') == [('a', 'walk')]
    assert failed(audit, 'class:sit.down.old_head < -5') == []
    assert len(check_audit(audit, [parse_rule('class:*.old_head < -5')])) == 2


def test_rules_of_one_task(audit):
    assert failed(audit, 'task:a.source_probe < -.5') == [('a', None)]
    assert failed(audit, 'task:folder:/x/b.c.source_probe < -.5') == [('folder:/x/b.c', None)]
    assert failed(audit, 'task:folder:*.source_probe < -.5') == [('folder:/x/b.c', None)]
    assert failed(audit, 'task:a.class:walk.old_head < -5') == [('a', 'walk')]


def test_what_is_not_known_fails(audit):
    "A collapse has no CKA, and one group no interval: that is no pass"
    probe = audit['results'][0]['measures']['source_probe']
    probe['change'] = dict(value=0., low=None, high=None)
    audit['results'][1]['measures']['source_probe']['change'] = dict(value=None, low=None, high=None)
    checks = check_audit(audit, [parse_rule('source_probe < -50')])
    assert [(c.failed, c.why) for c in checks] == [(True, 'has no interval'), (True, 'has no value')]
    assert checks[1].shown == '– [–, –]'


MISTAKES = {
    'probee < 1': 'no measure .probee.; did you mean probe',
    'cka < .9': "no measure 'cka_unbiased'",
    'class:wlak.old_head < 1': 'names no class that was measured; there is walk',
    'class:walk.drift > 1': 'not measured by class; these are: source_acc',
    'task:c.drift > 1': 'names no task of this audit; there is a',
    'task:a.neighbours < 1': 'is about a measure that a does not have',
    'drift': 'is no rule: expected MEASURE < NUMBER',
    'drift > nan': "'nan' is not a number",
    'drift > much': "'much' is not a number",
    'drift = 1': 'is no rule',
    '': 'is no rule',
}


@pytest.mark.parametrize('text', MISTAKES)
def test_mistakes_are_one_line(audit, text):
    with pytest.raises(InputError, match=MISTAKES[text]) as e: check_audit(audit, [parse_rule(text)])
    assert '\n' not in str(e.value)


def test_policies(tmp_path):
    file = tmp_path/'gate.yaml'
    file.write_text('fail_if:\n  - source_probe < -2  # points\n  - class:walk.old_head < -5\n')
    assert [r.text for r in read_policy(file)] == ['source_probe < -2', 'class:walk.old_head < -5']
    for text in ('', 'fail_if:\n', 'fail_if: []', '- knn < 1', 'fail_if: [drift > 1]\nother: 1', 'fail_if: drift > 1'):
        file.write_text(text)
        with pytest.raises(InputError, match='must have a list of rules, fail_if'): read_policy(file)
    file.write_text('fail_if: [')
    with pytest.raises(InputError, match='is not YAML'): read_policy(file)
    file.write_text('fail_if: [{class: walk}]')
    with pytest.raises(InputError, match='is no rule'): read_policy(file)
    with pytest.raises(InputError, match='cannot be read'): read_policy(tmp_path/'none.yaml')


def test_junit(audit):
    audit['results'][0]['task'] = 'a <&"\x00>'
    checks = check_audit(audit, [parse_rule('class:*.old_head < -5'), parse_rule('drift > .3')])
    root = ET.fromstring(junit_xml(checks))
    [suite] = root
    assert (root.tag, suite.tag) == ('testsuites', 'testsuite')
    assert (suite.get('tests'), suite.get('failures'), suite.get('errors')) == ('4', '1', '0')
    cases = suite.findall('testcase')
    assert [c.get('name') for c in cases] == ['class:*.old_head < -5 [walk]', 'class:*.old_head < -5 [sit.down]',
                                              'drift > .3', 'drift > .3']
    assert cases[0].get('classname') == 'tuned.pth on a <&"?>'
    [failure] = suite.iter('failure')
    assert '-40.0 [-60.0, -20.0] on 9 clips' in failure.get('message')


def test_annotations_are_one_line_each(audit):
    audit['results'][0]['after'] = 'a%b\nc'
    text = github_annotations(check_audit(audit, [parse_rule('task:a.probe < -2'), parse_rule('drift > 9')]), 'x.json')
    assert text.startswith('::error title=sdfast gate%3A task%3Aa.probe < -2::a%25b%0Ac: source_probe of a: -1.0')
    assert '\n' not in text


def test_the_table_has_the_failures_only(audit):
    table = failure_table(check_audit(audit, [parse_rule('class:*.old_head < -5'), parse_rule('drift > 9')]))
    head, row = table.splitlines()
    assert head.split() == ['rule', 'checkpoint', 'task', 'class', 'found', 'clips', 'why']
    assert 'walk' in row and '-40.0 [-60.0, -20.0]' in row


def test_files_that_are_no_audits(audit, tmp_path):
    file = tmp_path/'audit.json'
    file.write_text(json.dumps(audit))
    assert read_audit(file) == read_audit(tmp_path) == audit
    for content, message in (('{', 'is not JSON'), ('[]', 'is not an audit'), ('{"format": "x"}', 'is not an audit'),
                             (json.dumps(audit | dict(version=2)), 'has version 2, and this sdfast reads 1'),
                             (json.dumps(audit | dict(results=[])), 'has no results'),
                             (json.dumps(audit | dict(results=[dict(after='a')])), 'has no task')):
        file.write_text(content)
        with pytest.raises(InputError, match=message): read_audit(file)
    with pytest.raises(InputError, match='does not exist: sdfast audit writes it'): read_audit(tmp_path/'x.json')
