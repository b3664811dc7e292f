"""The page of a study from its results alone: nothing is trained or measured.

    python experiments/make_report.py runs/compare                          # runs/compare/report.html and figures/
    python experiments/make_report.py runs/a runs/b --out runs/both.html    # several studies

Studies with the same tasks, model and weights are merged, others follow one another. What a folder lacks (such as one
that has only runs.csv, or whose videos are gone) is left out, and the page says so."""
from sdfast.commands.report import main

if __name__ == '__main__': main()
