"""The page of a study from its results alone: nothing is trained, nothing is measured.

    python experiments/make_report.py runs/compare                        # writes runs/compare/report.html and runs/compare/figures/
    python experiments/make_report.py runs/a runs/b --out runs/both.html  # studies of one set-up are merged, others follow one another

What a folder lacks (one of which only runs.csv was kept, or videos that are no longer there) is left out, and said."""
from sdfast.commands.report import main

if __name__ == '__main__': main()
