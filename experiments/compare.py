"""What do different ways to fine-tune the same pre-trained video encoder learn, and what do they forget?

    python experiments/compare.py            # on moving_digits, with CPUs; see experiments/README.md for times
    python experiments/compare.py --quick    # the same at a reduced size, to check that everything works
    python experiments/compare.py --source folder:A --task folder:B --model r2plus1d_18 --init weights.pth --size 112
    python experiments/compare.py --config study.yaml --epochs 4    # a study file; options override it

A model is trained on the source task, or its weights come from --init. Each strategy fine-tunes it on the target task,
and the result is measured on both tasks. Each strategy's strength is chosen on held-out data from the same number of
trials. Plain fine-tuning has no strength, so its trials have different learning rates instead. The results are written
to the folder --out: report.html (a page to look at), runs.csv, table.csv, table.md, notes.json, figure.png, and
study.yaml, which repeats the study.

If the command is stopped, calling it again resumes each run after its last finished epoch. Several calls with the same
--out share the work:

    python experiments/compare.py --jobs 4    # worker processes, one for each GPU where there are several
    python experiments/compare.py --jobs 32 --launcher slurm --slurm partition=gpu,gpus=1,cpus=8,time=240
    torchrun --nproc_per_node 4 experiments/compare.py --bs 128    # four processes for each run
    python experiments/status.py runs/compare                      # its progress, in another terminal"""
import sys

from sdfast.commands.compare import main

if __name__ == '__main__': sys.exit(main())
