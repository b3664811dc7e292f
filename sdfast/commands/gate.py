"""Fail if an audit breaks a rule: exit status 1 with a table of what failed, else 0.

    sdfast gate audit.json --fail-if 'source_probe < -2' --fail-if 'class:walk.old_head < -5'
    sdfast gate audit.json --policy gate.yaml --junit gate.xml

A rule says what fails. It is decided by the bound of the interval: `source_probe < -2` fails unless the clips show that
the accuracy of a new probe has not fallen by more than 2 points. Accuracies are judged by their change in points,
measures that compare both encoders (cka, drift, kl, ...) by their value.

    MEASURE < NUMBER, MEASURE > NUMBER     on every task of the audit
    class:NAME.MEASURE < NUMBER            on the clips of a class; class:* stands for each class
    task:NAME.MEASURE < NUMBER             on one task; also task:NAME.class:NAME.MEASURE

A policy is a YAML file with a list of rules:

    fail_if:
      - source_probe < -2
      - class:*.old_head < -20"""
import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, StoreError
from ..report.audit_file import read_audit
from ..report.gate import check_audit, parse_rule, read_policy
from ..report.gate_output import count_of, failure_table, github_annotations, junit_xml
from ..runtime.program import program
from .one_line import check_path, one_line_errors

__all__ = ['make_parser', 'main']


def make_parser()->argparse.ArgumentParser:
    "The options of the command"
    parser = argparse.ArgumentParser(program('gate'), description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('audit', help='audit.json of sdfast audit, or its folder')
    parser.add_argument('--fail-if', action='append', default=[], metavar='RULE', help='a rule; may be repeated')
    parser.add_argument('--policy', metavar='FILE', help='YAML file with rules; --fail-if adds to them')
    parser.add_argument('--junit', metavar='FILE', help='also write the checks as JUnit XML')
    on_github = bool(os.environ.get('GITHUB_ACTIONS'))
    parser.add_argument('--github', action=argparse.BooleanOptionalAction, default=on_github,
                        help='print annotations of GitHub Actions; by default where GITHUB_ACTIONS is set')
    return parser


def main(
    argv:Sequence[str]|None=None, # Arguments of the command line, by default those of this process
)->int: # Exit status: 1 if a rule is broken, else 0; errors end the process with 2
    "Check the rules, and print and write what came out"
    with one_line_errors(program('gate')):
        args = make_parser().parse_args(argv)
        for option in ('audit', 'policy', 'junit'): check_path(getattr(args, option) or '', option)
        rules = (read_policy(args.policy) if args.policy else []) + [parse_rule(rule) for rule in args.fail_if]
        if not rules: raise InputError("no rule is given: add --fail-if 'source_probe < -2', or --policy FILE")
        checks = check_audit(read_audit(args.audit), rules)
        if args.junit: _write(args.junit, junit_xml(checks))
    failed = sum(c.failed for c in checks)
    if args.github and failed: print(github_annotations(checks, args.audit))
    if failed:
        print(failure_table(checks))
        print(f'{failed} of {count_of(len(checks), "check")} failed')
        return 1
    print(f'passed: {count_of(len(checks), "check")} of {count_of(len(rules), "rule")}')
    return 0


def _write(file, content):
    try: Path(file).write_bytes(content)
    except OSError as e: raise StoreError(f'--junit {file} cannot be written: {e.strerror or e}') from None


if __name__ == '__main__': sys.exit(main())
