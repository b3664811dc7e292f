"""A chain of tasks, one after another: which way to fine-tune keeps the most of all of them?

    python experiments/sequence.py                   # the embedded task, source → target → motion → digit: see experiments/README.md for the time
    python experiments/sequence.py --quick           # the same at a reduced size
    python experiments/sequence.py --source folder:A --tasks 'folder:B;ucf101:C' --model r2plus1d_18 --init weights.pth --size 112

Every strategy trains through the whole chain. Accuracies after each stage are measured with each task's own head, as it was left, and
with new linear probes on the encoder. Strengths are chosen by the mean accuracy on the valid parts of source and tasks after the last
stage, from the same number of trials. Writes runs.csv (a row a stage), matrix.csv, table.csv and table.md to --out."""
from sdfast.commands.sequence import main

if __name__ == '__main__': main()
