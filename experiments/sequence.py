"""Which way to fine-tune keeps most in a chain of tasks that are learned one after another?

    python experiments/sequence.py            # moving_digits, source → target → motion → digit
    python experiments/sequence.py --quick    # the same at a reduced size
    python experiments/sequence.py --source folder:A --tasks 'folder:B;ucf101:C' --model r2plus1d_18 --init weights.pth
    python experiments/sequence.py --config study.yaml --epochs 4    # a study file; options override it

Every strategy trains through the whole chain. After each stage, accuracies are measured with each task's head from the
end of its stage, and with new linear probes on the encoder. Strengths are chosen by the mean accuracy on the valid
parts of source and tasks after the last stage, from the same number of trials. The results are written to the folder
--out: runs.csv (one row for each stage), matrix.csv, table.csv, table.md, and study.yaml, which repeats the study. If
the command is stopped, calling it again resumes each chain after its last finished epoch."""
import sys

from sdfast.commands.sequence import main

if __name__ == '__main__': sys.exit(main())
