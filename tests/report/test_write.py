"The files of a study."
import pandas as pd

from sdfast.report.tables import margins_table, trade_off_table
from sdfast.report.trade_off import trade_off
from sdfast.report.write import write_report


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
