"""Write the page of a study from its stored results: nothing is trained or measured.

    sdfast report runs/compare                          # runs/compare/report.html and figures/
    sdfast report runs/a runs/b --out runs/both.html    # several studies

Studies with the same tasks, model and weights are merged; others follow one another on the page. If files are missing
in a folder, or its videos are gone, the page leaves out the parts that need them and says so."""
from fastcore.script import call_parse, store_true

from ..errors import InputError
from ..report.page import write_page
from ..report.write import write_flips
from ..runtime.program import program
from ..stats import ADJUSTMENTS
from .console import say
from .one_line import check_path, one_line_errors

__all__ = ['main']


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    *folders:str, # Folders of studies: the --out of sdfast compare
    out:str=None, # File to write, by default report.html in the folder
    adjust:str='holm', # How p values are adjusted for the number of strategies: holm, bh (false discovery rate) or none
    no_figures:store_true=False, # Write only the page, not each plot as PDF and PNG
    flips:str=None, # Also write a CSV file: in how many seeds each video of the source was forgotten or learned
):
    "Rebuild a study's page and figures from its folder"
    with one_line_errors(program('report')):
        if not folders: raise InputError('name at least one folder of a study: the --out of sdfast compare')
        for path in (*folders, out or '', flips or ''): check_path(path, 'a folder, --out and --flips')
        if len(folders) > 1 and not out: raise InputError('--out is needed for several folders: the file to write')
        if adjust not in ADJUSTMENTS:
            raise InputError(f'--adjust must be one of {", ".join(ADJUSTMENTS)}, not {adjust!r}')
        page = write_page(folders, out, adjust, not no_figures)
        figures = '' if no_figures else f', and each plot as PDF and PNG in {page.parent/"figures"}'
        say(f'written: {page}{figures}')
        if flips: say(f'written: {write_flips(folders, flips)}')
