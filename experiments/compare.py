"""Ways to fine-tune the same pre-trained video encoder: what does each learn, and what does it forget?

    python experiments/compare.py            # the embedded task, on 2 CPU cores: see experiments/README.md for times
    python experiments/compare.py --quick    # the same at a reduced size, to see that everything works
    python experiments/compare.py --source folder:A --task folder:B --model r2plus1d_18 --init weights.pth --size 112
    python experiments/compare.py --config study.yaml --epochs 4    # a study file; options override it

A model is trained on the source task, or comes from --init. Each strategy fine-tunes it on the target task, and is
measured on both. Each strategy's strength is chosen on held-out data from the same number of trials. Plain fine-tuning
has no strength and chooses among as many learning rates. The folder --out gets report.html (a page to look at),
runs.csv, table.csv, table.md, notes.json, figure.png, and study.yaml, which repeats the study.

If it is stopped, the same command resumes each run after its last finished epoch. Invocations with one --out share the
work:

    python experiments/compare.py --jobs 4    # worker processes, one for each GPU where there are several
    python experiments/compare.py --jobs 32 --launcher slurm --slurm partition=gpu,gpus=1,cpus=8,time=240
    torchrun --nproc_per_node 4 experiments/compare.py --bs 128    # four processes for each run
    python experiments/status.py runs/compare                      # its progress, in another terminal"""
import sys

from sdfast.commands.compare import main

if __name__ == '__main__': sys.exit(main())
