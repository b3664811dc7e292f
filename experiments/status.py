"""Show the progress of a study, its running and its failed runs, in another terminal.

    python experiments/status.py runs/compare              # once
    python experiments/status.py runs/compare --every 5    # every 5 seconds, until Ctrl-C"""
from sdfast.commands.status import main

if __name__ == '__main__': main()
