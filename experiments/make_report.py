"""What does the page of a study say, made again from its results alone? Nothing is trained or measured.

    python experiments/make_report.py runs/compare          # writes runs/compare/report.html and runs/compare/figures/
    python experiments/make_report.py runs/a runs/b --out runs/both.html

Studies of one set-up are merged, others follow one another. What a folder lacks (if only runs.csv was kept, or if
videos were deleted) is left out, and the page says so."""
from sdfast.commands.report import main

if __name__ == '__main__': main()
