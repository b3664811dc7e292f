"""Which strategy keeps most of the source where it learns the target as well as plain fine-tuning at its best?

    python experiments/protocol.py experiments/protocol/digits.yaml --jobs 2
    python experiments/protocol.py experiments/protocol/digits.yaml --dry-run    # the number of runs, and hours
    python experiments/protocol.py experiments/protocol/digits.yaml --quick      # the same at a reduced size

PROTOCOL.md says what is compared, how settings are chosen, and what will be concluded; it was written before any run. A
study file has the tasks, the net, the arms and their learning rates. Finished runs are not repeated. After each source
model it writes runs.csv, against_NAME.csv and tables.md to --results, by default --out; a source model whose runs are
in runs.csv there is not done again, on whatever machine that was."""
from sdfast.commands.start import start

if __name__ == '__main__': start()

from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml
from fastcore.script import call_parse, store_true

from sdfast.commands.common import make_folder, study_session
from sdfast.errors import InputError
from sdfast.report.crossed import compare_arms, crossed_table
from sdfast.runtime import store
from sdfast.study.protocol import ProtocolPlan, make_arm, run_protocol
from sdfast.study.settings import make_settings
from sdfast.study.setup import build

PRIMARY, REFERENCE = 'self_distill', 'finetune'
QUICK_ARMS = 'finetune', 'encoder_lr', 'self_distill'
CHOSEN = dict(
    kept='Settings were chosen for each source model on held-out parts of source and target, never on test.',
    accuracy='Settings were chosen for each source model by accuracy on a held-out part of the target alone, as one '
             'who has no source data must.')
BY = dict(kept='what is kept', accuracy='target accuracy')
SECONDS = dict(tiny=9.9)  # of one run on one core, for --dry-run; the mean of results/moving_digits_all/runs.csv


def read_study(file, quick=False):
    "The settings of a study file, and its arms"
    values = yaml.safe_load(Path(file).read_text(encoding='utf-8'))
    arms = values.pop('arms')
    lrs, plain_lrs = values.pop('lrs'), values.pop('plain_lrs')
    if quick:
        lrs, plain_lrs = lrs[:1], plain_lrs[:3]
        arms = {name:lams for name, lams in arms.items() if name in QUICK_ARMS}
    arms = {name:make_arm(name, lrs, plain_lrs, lams) for name, lams in arms.items()}
    return make_settings('compare', rule='equal_learning', quick=quick, **values), arms


def read_finished(protocol, file):
    "The rows in `file` of those source models whose trials, with these settings, are all there; source model -> rows"
    if not file.exists(): return {}
    rows = pd.read_csv(file, dtype=dict(key=str, anchor=str)).fillna(dict(rule='', error=''))

    def is_done(net, of_net):
        trials = {r.key for r in replace(protocol, nets=(net,)).first()}
        return trials <= set(of_net[of_net.rule == ''].key) and not (of_net.status == 'failed').any()
    return {net:of_net for net, of_net in rows.groupby('source_seed') if net in protocol.nets and is_done(net, of_net)}


def joined(finished): return pd.concat([finished[net] for net in sorted(finished)], ignore_index=True)


def write_tables(rows, folder):
    "Write the rows, and a comparison with the primary arm and with the reference for each rule"
    store.write(folder/'runs.csv', rows.to_csv(index=False))
    parts = []
    for rule, chosen in CHOSEN.items():
        for arm in (PRIMARY, REFERENCE):
            table = compare_arms(rows, arm, rule)
            store.write(folder/f'against_{arm}_{rule}.csv', table.to_csv(index=False, float_format='%.6g'))
            text = crossed_table(table, arm, chosen=chosen).to_markdown()
            parts.append(f'## Against {arm}, chosen by {BY[rule]}\n\n{text}')
    store.write(folder/'tables.md', '\n'.join(parts))
    return parts[0]


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    study:str, # A file in experiments/protocol
    nets:int=5, # Source models
    seeds:int=6, # Final runs of each arm with each source model
    out:str='', # Folder of the runs, by default runs/protocol_NAME
    results:str='', # Folder for the tables; by default --out
    jobs:int=1, # Worker processes
    dry_run:store_true=False, # Only say how many runs there are, and about how long they take
    quick:store_true=False, # 2 source models, 2 seeds, few clips, arms and settings
):
    "Compare arms over source models and seeds"
    out = out or f'runs/protocol_{Path(study).stem}'
    with study_session('protocol.py', out, jobs) as (progress, where):
        try: settings, arms = read_study(study, quick)
        except (OSError, KeyError, TypeError, yaml.YAMLError) as e:
            raise InputError(f'{study} is no study of this script: {" ".join(str(e).split())}') from None
        base = build(settings).runs[0]
        protocol = ProtocolPlan(base, arms, range(2 if quick else nets), 2 if quick else seeds)
        if dry_run:
            n_trials = len(protocol.first())
            n_final = 2*len(protocol.nets)*protocol.seeds*len(arms)
            hours = (n_trials + n_final)*SECONDS.get(base.model, 20.)/3600
            print(f'{n_trials} trials and up to {n_final} final runs, about {hours:.1f} hours of one core')
            return
        folder = make_folder(results or out)
        finished = read_finished(protocol, folder/'runs.csv')
        for net in protocol.nets:
            if net in finished: continue
            finished[net] = run_protocol(replace(protocol, nets=(net,)), out, progress, where)
            write_tables(joined(finished), folder)
        print(write_tables(joined(finished), folder))
