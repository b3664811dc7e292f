"""Make small copies of a task's videos, which are decoded faster.

Options and files are described in sdfast/commands/prepare.py.

    python experiments/prepare.py folder:videos"""
from sdfast.commands.start import run

if __name__ == '__main__': run('prepare')
