"Figures as files."
from PIL import Image

from sdfast.report.figures import figure, path_figure
from sdfast.report.load import load_results
from sdfast.report.panels import plots
from sdfast.report.summary import summary


def test_every_plot_is_written(study, page):
    r, = load_results(study)
    names = {plot.name for plot in plots(r, summary(r.rows))}
    files = {f.name for f in (study/'figures').iterdir()}
    assert files == {f'{name}.{end}' for name in names for end in ('pdf', 'png')}
    for name in names:
        assert (study/'figures'/f'{name}.pdf').read_bytes().startswith(b'%PDF')
        with Image.open(study/'figures'/f'{name}.png') as image:
            assert image.width > 600
            colours = image.convert('L').resize((64, 64)).getcolors()
            assert len(colours) > 5, 'something is drawn'


def test_two_panels(rows, path):
    assert len(figure(rows).axes) == 2
    assert len(path_figure(path).axes) == 2
