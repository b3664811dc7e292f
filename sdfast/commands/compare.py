"""What do different ways to fine-tune the same pre-trained video encoder learn, and what do they forget?

    sdfast compare            # on moving_digits, with CPUs; see experiments/README.md for times
    sdfast compare --quick    # the same at a reduced size, to check that everything works
    sdfast compare --source folder:A --task folder:B --model r2plus1d_18 --init weights.pth --size 112
    sdfast compare --config study.yaml --epochs 4    # a study file; options override it

A model is trained on the source task, or its weights come from --init. Each strategy fine-tunes it on the target task,
and the result is measured on both tasks. Each strategy's strength is chosen on held-out data from the same number of
trials. Plain fine-tuning has no strength, so its trials have different learning rates instead. The results are written
to the folder --out: report.html (a page to look at), runs.csv, table.csv, table.md, notes.json, figure.png, and
study.yaml, which repeats the study.

If the command is stopped, calling it again resumes each run after its last finished epoch. Several calls with the same
--out share the work:

    sdfast compare --jobs 4    # worker processes, one for each GPU where there are several
    sdfast compare --jobs 32 --launcher slurm --slurm partition=gpu,gpus=1,cpus=8,time=240
    torchrun --nproc_per_node 4 -m sdfast compare --bs 128    # four processes for each run
    sdfast status runs/compare                      # its progress, in another terminal"""
import sys
from collections.abc import Sequence

from ..runtime.program import program
from ..study.settings import parse_command_line
from .one_line import one_line_errors
from .start import loading

__all__ = ['main']


def main(
    argv:Sequence[str]|None=None, # Arguments of the command line, by default those of this process
)->int: # Exit status; errors end the process with 2, Ctrl-C with 130
    "Compare ways to fine-tune a pre-trained video encoder: what they learn, and what they forget"
    with one_line_errors(program('compare')): settings = parse_command_line('compare', argv, __doc__)
    with one_line_errors(program('compare'), settings.out):
        with loading():  # the import of PyTorch takes seconds
            from .comparison import run_comparison
        run_comparison(settings)
    return 0


if __name__ == '__main__': sys.exit(main())
