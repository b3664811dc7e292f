"""Write the page of a study from its stored results.

Options and files are described in sdfast/commands/report.py.

    python experiments/make_report.py runs/compare"""
from sdfast.commands.start import run

if __name__ == '__main__': run('report')
