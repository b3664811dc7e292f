r"""Rules that an audit must not break, by the bounds of its intervals.

A rule says what fails:

    source_probe < -2               the accuracy of a new probe may have fallen by more than 2 points, on any task
    class:walk.old_head < -5        that of the old head on the clips of a class
    class:*.old_head < -20          on those of any class
    task:ucf*.cka < .9              on the tasks of this name; * and ? stand for any letters
    task:ucf*.class:walk.knn < -5

An accuracy is judged by its change, after minus before, in percentage points; a measure that compares both encoders
(CKA, drift, KL and others) by its value. What counts is the bound of the interval: `<` fails if its lower end is below
the limit, `>` if its upper end is above. So a rule passes only if the clips show, with the confidence of the audit,
that the limit is kept: at a level of 95 %, one bound is wrong in 1 of 40 audits. With few clips intervals are wide, and
rules fail because too little is known; the table says so. A value or an interval that is missing fails, too.

This module imports nothing that takes time."""
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any

from ..errors import InputError

__all__ = ['parse_rule', 'read_policy', 'check_audit']

ALIASES = dict(old_head='source_acc', old_head_bn='source_acc_bn', probe='source_probe', knn='source_knn',
               cka='cka_unbiased')
RULE = re.compile(r'(?P<what>.*?)\s*(?P<sign><=|>=|<|>)\s*(?P<limit>\S+)')
WHAT = re.compile(r'(?:task:(?P<task>.+?)\.)?(?:class:(?P<label>.+)\.)?(?P<measure>\w+)', re.DOTALL)
SIGNS = {'<':lt, '<=':le, '>':gt, '>=':ge}
EXAMPLE = "'source_probe < -2' or 'class:walk.old_head < -5'"


@dataclass(frozen=True)
class Rule:
    "What fails: a measure below or above a limit"
    text: str  # as the user wrote it
    measure: str  # its name in the audit
    sign: str  # '<', '<=', '>' or '>='
    limit: float  # in percentage points for shares
    task: str = '*'  # pattern of the names of tasks
    label: str|None = None  # pattern of the names of classes; `None`: all clips of a task

    def breaks(self,
        x:float, # A value
    )->bool:
        "Whether a value is beyond the limit"
        return SIGNS[self.sign](x, self.limit)


@dataclass(frozen=True)
class Check:
    "A rule on the clips of one task or class, for one fine-tuned encoder"
    rule: Rule
    after: str  # checkpoint
    task: str
    label: str|None  # class; `None`: all
    value: float|None  # of the measure or its change, in the rule's unit; `None`: not known
    low: float|None  # ends of its interval
    high: float|None
    clips: int
    digits: int  # decimals to show

    @property
    def bound(self)->float|None:
        "The end of the interval that decides"
        return self.low if self.rule.sign[0] == '<' else self.high

    @property
    def failed(self)->bool: return self.bound is None or self.value is None or self.rule.breaks(self.bound)

    @property
    def why(self)->str:
        "Why it failed"
        if self.value is None: return 'has no value'
        if self.bound is None: return 'has no interval'
        other = self.high if self.rule.sign[0] == '<' else self.low
        if other is not None and self.rule.breaks(other): return 'beyond the limit'
        return 'beyond the limit, within the interval' if self.rule.breaks(self.value) else 'cannot be excluded'

    @property
    def shown(self)->str:
        "Value and interval, such as '-3.2 [-5.1, -1.4]'"
        return f'{_text(self.value, self.digits)} [{_text(self.low, self.digits)}, {_text(self.high, self.digits)}]'


def _text(x, digits): return '–' if x is None else f'{round(x, digits) + 0.:.{digits}f}'


# ---- rules

def parse_rule(
    text:str, # Such as `class:walk.old_head < -5`
)->Rule: # For `check_audit`
    "Read a rule. Raises `InputError` for anything else"
    match = RULE.fullmatch(text.strip()) if isinstance(text, str) else None
    what = match and WHAT.fullmatch(match['what'])
    if not match or not what: raise InputError(f'{text!r} is no rule: expected MEASURE < NUMBER, such as {EXAMPLE}')
    try: limit = float(match['limit'])
    except ValueError: limit = float('nan')
    if not abs(limit) < float('inf'): raise InputError(f'{text!r}: {match["limit"]!r} is not a number')
    measure = ALIASES.get(what['measure'], what['measure'])
    return Rule(text.strip(), measure, match['sign'], limit, what['task'] or '*', what['label'])


def read_policy(
    path:str|Path, # YAML file with a list of rules, `fail_if`
)->list[Rule]: # For `check_audit`
    "Read the rules in a file. Raises `InputError` for a file that is not of this kind"
    import yaml
    try: content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except OSError as e: raise InputError(f'policy {path} cannot be read: {e.strerror or e}') from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise InputError(f'policy {path} is not YAML: {" ".join(str(e).split())}') from None
    rules: Any = content.get('fail_if') if isinstance(content, dict) else None
    if not isinstance(rules, list) or not rules or set(content) != {'fail_if'}:
        raise InputError(f'policy {path} must have a list of rules, fail_if, and nothing else; a rule is {EXAMPLE}')
    return [parse_rule(rule) for rule in rules]


# ---- checks

def check_audit(
    audit:dict, # From `read_audit`
    rules:Sequence[Rule], # At least one
)->list[Check]: # In the order of the rules
    "Check rules. Raises `InputError` for one that says nothing about this audit, such as an unknown measure or class"
    if not rules: raise InputError(f'a gate needs a rule, such as {EXAMPLE}')
    checks = []
    for rule in rules:
        _check_measure(audit, rule)
        found = list(_checks(audit, rule))
        if not found: raise InputError(f'{rule.text!r} {_why_nothing(audit, rule)}')
        checks += found
    return checks


def _checks(audit, rule)->Iterator[Check]:
    row = audit['measures'][rule.measure]
    part, scale = ('after' if row['compares'] else 'change'), (100 if row['share'] else 1)
    for r in _results_of(audit, rule):
        for label, place in _places(r, rule):
            if rule.measure not in place['measures']: continue
            found = place['measures'][rule.measure][part]
            value, low, high = (_scaled(found[k], scale) for k in ('value', 'low', 'high'))
            yield Check(rule, r['after'], r['task'], label, value, low, high, place['clips'], 1 if row['share'] else 3)


def _scaled(x, scale): return None if x is None else float(f'{scale*x:.12g}')  # -0.07 times 100 is exactly -7


def _places(r, rule):
    if rule.label is None: return [(None, r)]
    return [(label, found) for label, found in r['classes'].items() if _matches(label, rule.label)]


def _results_of(audit, rule):
    return [r for r in audit['results'] if _matches(r['task'], rule.task)]


def _matches(name, pattern): return name == pattern or fnmatchcase(name, pattern)


def _check_measure(audit, rule):
    known = audit['measures']
    if rule.measure in known: return
    names = {**{m:m for m in known}, **{a:m for a, m in ALIASES.items() if m in known}}
    near = get_close_matches(rule.measure, names, 3, .4)
    hint = f'did you mean {" or ".join(near)}?' if near else f'it has {", ".join(known)}'
    raise InputError(f'{rule.text!r}: this audit has no measure {rule.measure!r}; {hint}')


def _why_nothing(audit, rule):
    tasks = list(dict.fromkeys(r['task'] for r in audit['results']))
    of_task = _results_of(audit, rule)
    if not of_task: return f'names no task of this audit{_near(rule.task, tasks)}'
    if rule.label is None: return f'is about a measure that {", ".join(r["task"] for r in of_task)} does not have'
    classes = list(dict.fromkeys(c for r in of_task for c in r['classes']))
    if not any(_matches(c, rule.label) for c in classes):
        return f'names no class that was measured{_near(rule.label, classes)}'
    measures = {m for r in of_task for c in r['classes'].values() for m in c['measures']}
    return f'is about a measure that is not measured by class; these are: {", ".join(sorted(measures))}'


def _near(name, known):
    near = get_close_matches(name, known, 3, .4) or known[:5]
    return f'; there is {", ".join(near)}' if near else '; it has none'
