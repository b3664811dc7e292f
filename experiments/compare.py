"""Compare ways to fine-tune on one target task.

Options and files are described in sdfast/commands/compare.py.

    python experiments/compare.py --help"""
import sys

from sdfast.commands.compare import main

if __name__ == '__main__': sys.exit(main())
