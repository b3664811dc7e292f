"""Compare ways to fine-tune in a chain of tasks.

Options and files are described in sdfast/commands/sequence.py.

    python experiments/sequence.py --help"""
import sys

from sdfast.commands.sequence import main

if __name__ == '__main__': sys.exit(main())
