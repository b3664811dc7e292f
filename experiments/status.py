"""How far is a study, what runs, and what failed? For another terminal.

    python experiments/status.py runs/compare              # once
    python experiments/status.py runs/compare --every 5    # again every 5 seconds, until Ctrl-C"""
from sdfast.commands.status import main

if __name__ == '__main__': main()
