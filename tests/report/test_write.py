"The files of a study."
import shutil

import pandas as pd
import pytest

from sdfast.commands.report import main
from sdfast.errors import InputError
from sdfast.report.load import load_results
from sdfast.report.tables import margins_table, trade_off_table
from sdfast.report.trade_off import trade_off
from sdfast.report.write import write_flips, write_report


def test_paths_are_written(path, tmp_path):
    write_report(path, tmp_path)
    files = {f.name for f in tmp_path.iterdir()}
    assert {'paths.png', 'trade_off_source_acc.md', 'trade_off_source_probe.csv', 'table.md'} <= files
    assert pd.read_csv(tmp_path/'trade_off_source_probe.csv').strategy.tolist() == ['finetune', 'l2sp', 'lwf']
    texts = [trade_off_table(trade_off(path)).to_markdown(), margins_table(path).to_markdown()]
    assert (tmp_path/'trade_off_source_probe.md').read_text() == '\n'.join(texts)


def test_without_paths_there_is_no_trade_off(path, tmp_path):
    write_report(path[path.chosen], tmp_path, notes=['a note'])
    files = {f.name for f in tmp_path.iterdir()}
    assert files == {'runs.csv', 'table.csv', 'table.md', 'notes.json', 'figure.png'}
    assert (tmp_path/'table.md').read_text().endswith('\n\n- a note\n')


def test_flips_are_written_on_request(study, tmp_path):
    file = write_flips([study], tmp_path/'new'/'flips.csv')
    table, want = pd.read_csv(file), load_results(study)[0].flips()
    assert list(table) == [*want, 'study'] and (table.study == 1).all()
    assert table.forgotten.tolist() == want.forgotten.tolist() and table.path.tolist() == want.path.tolist()
    bare = tmp_path/'bare'
    bare.mkdir()
    shutil.copy(study/'runs.csv', bare)
    with pytest.raises(InputError, match='no answers on the source are stored'): write_flips([bare], tmp_path/'x.csv')


def test_the_command_writes_them(study, tmp_path):
    copy = shutil.copytree(study, tmp_path/'study')
    main(str(copy), no_figures=True, flips=str(tmp_path/'flips.csv'))
    assert (tmp_path/'flips.csv').read_bytes() == write_flips([copy], tmp_path/'again.csv').read_bytes()
    with pytest.raises(SystemExit): main(str(copy), no_figures=True, flips='a\nb.csv')
