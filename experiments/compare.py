"""Compare ways to fine-tune on one target task.

Options and files are described in sdfast/commands/compare.py.

    python experiments/compare.py --help"""
from sdfast.commands.start import run

if __name__ == '__main__': run('compare')
