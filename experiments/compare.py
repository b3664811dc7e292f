"""Six ways to fine-tune the same pre-trained video encoder: what was learned, and what was forgotten?

    python experiments/compare.py                    # the embedded task, 2 CPU cores: see experiments/README.md for times
    python experiments/compare.py --quick            # the same at a reduced size, to see that everything works
    python experiments/compare.py --source folder:A --task folder:B --model r2plus1d_18 --init weights.pth --size 112

A model is trained on the source task (or comes from --init), fine-tuned on the target task by each strategy, and measured on
both. Each strategy's strength is chosen on held-out data from the same number of trials; plain fine-tuning, which has no
strength, chooses among as many learning rates. Writes report.html, a page to look at, runs.csv, table.csv, table.md, notes.json and figure.png to --out.

Killed at any moment, the same command goes on from each run's last finished epoch. Invocations on one --out share the work:

    python experiments/compare.py --jobs 4                            # worker processes, one for each GPU where there are several
    python experiments/compare.py --jobs 32 --launcher slurm --slurm partition=gpu,gpus=1,cpus=8,time=240
    torchrun --nproc_per_node 4 experiments/compare.py --bs 128       # four processes for each run
    python experiments/status.py runs/compare                         # how far it is, in another terminal"""
from sdfast.commands.compare import main

if __name__ == '__main__': main()
