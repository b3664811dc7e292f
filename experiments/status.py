"""Show the progress of a study.

Options and files are described in sdfast/commands/status.py.

    python experiments/status.py runs/compare"""
from sdfast.commands.start import run

if __name__ == '__main__': run('status')
