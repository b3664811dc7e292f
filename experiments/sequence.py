"""Compare ways to fine-tune in a chain of tasks.

Options and files are described in sdfast/commands/sequence.py.

    python experiments/sequence.py --help"""
from sdfast.commands.start import run

if __name__ == '__main__': run('sequence')
