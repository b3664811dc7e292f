"What chains measure, and chains that cannot be measured."
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from sdfast.errors import InputError
from sdfast.report.tables import chain_table
from sdfast.study.accuracies import Accuracies

pytestmark = pytest.mark.usefixtures('fresh')


def test_a_chain_needs_a_task():
    with pytest.raises(InputError, match='at least one task'): Accuracies([])


def test_all_tasks_need_the_same_source(bases):
    with pytest.raises(InputError, match='same source'): Accuracies([bases[0], replace(bases[1], data='y')])


def test_all_tasks_need_a_valid_part(bases):
    with pytest.raises(InputError, match='no valid part'): Accuracies([bases[0], replace(bases[1], valid_frac=0.)])
    with pytest.raises(InputError, match='source_valid'): Accuracies([replace(bases[0], source_valid=False)])


def test_a_folder_named_like_a_formula_or_a_tag(bases, clips, tmp_path):
    "Names of tasks are cells of csv files and heads of columns of table.md"
    odd = tmp_path/'=1+1 <b>|x'
    shutil.copytree(clips, odd)
    names = Accuracies([bases[0], replace(bases[1], task=f'folder:{odd},group=(p\\d)_')]).names
    assert names == ['source', 'clips0', '_1+1 <b>|x']
    metrics = ['average', 'learned', 'bwt', 'probe_average', 'fwt', *(f'forgetting.{n}' for n in names)]
    row = dict(strategy='finetune', lam=0., lr=.1, runs=1, failed=0)
    row |= {f'{m}{end}':.5 for m in metrics for end in ('', '_low', '_high')}
    head = chain_table(pd.DataFrame([row])).to_markdown().splitlines()[0]
    assert '| forgetting \\_1+1 \\<b\\>\\|x |' in head
