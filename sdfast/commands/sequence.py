"""Which way to fine-tune keeps most in a chain of tasks that are learned one after another?

    sdfast sequence            # moving_digits, source → target → motion → digit
    sdfast sequence --quick    # the same at a reduced size
    sdfast sequence --source folder:A --tasks 'folder:B;ucf101:C' --model r2plus1d_18 --init weights.pth
    sdfast sequence --config study.yaml --epochs 4    # a study file; options override it

Every strategy trains through the whole chain. After each stage, accuracies are measured with each task's head from the
end of its stage, and with new linear probes on the encoder. Strengths are chosen by the mean accuracy on the valid
parts of source and tasks after the last stage, from the same number of trials. The results are written to the folder
--out: runs.csv (one row for each stage), matrix.csv, table.csv, table.md, and study.yaml, which repeats the study. If
the command is stopped, calling it again resumes each chain after its last finished epoch."""
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
    "Compare ways to fine-tune through a chain of tasks: what they learn, and what they forget of each task"
    with one_line_errors(program('sequence')): settings = parse_command_line('sequence', argv, __doc__)
    with one_line_errors(program('sequence'), settings.out):
        with loading():  # the import of PyTorch takes seconds
            from .chains import run_chains
        run_chains(settings)
    return 0


if __name__ == '__main__': sys.exit(main())
