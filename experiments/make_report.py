"""Write the page of a study from its stored results: nothing is trained or measured.

    python experiments/make_report.py runs/compare                          # runs/compare/report.html and figures/
    python experiments/make_report.py runs/a runs/b --out runs/both.html    # several studies

Studies with the same tasks, model and weights are merged; others follow one another on the page. If files are missing
in a folder, or its videos are gone, the page leaves out the parts that need them and says so."""
from sdfast.commands.report import main

if __name__ == '__main__': main()
