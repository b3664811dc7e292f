"""What did a fine-tuning forget? A report from the checkpoints before and after it; nothing is trained.

    sdfast audit before.pth after.pth --model r2plus1d_18 --task folder:videos
    sdfast audit hf:base hf:tuned --task ucf101:data --task videos:unlabelled

BEFORE and AFTER are files or folders of weights, whose net --model names, or names with weights: hf:FOLDER,
hf:OWNER/NAME, sdfast:FOLDER, torchvision:r2plus1d_18, timm:resnet18. Several checkpoints AFTER are compared with the
same one BEFORE. A task is named as for sdfast compare (moving_digits is its source part); videos:FOLDER are all videos
below a folder, without labels.

The folder --out gets audit.html (a page to look at), audit.json (which sdfast gate reads), audit.csv, layers.csv and
clips.csv. Intervals are by bootstrap over the test clips, or over groups of them where the task has groups."""
import argparse
import sys
from collections.abc import Sequence

from ..runtime.program import program, whole_command
from .heartbeat import Heartbeat
from .one_line import check_path, one_line_errors

__all__ = ['make_parser', 'main']

OUT = 'runs/audit'


def make_parser()->argparse.ArgumentParser:
    "The options of the command"
    parser = argparse.ArgumentParser(program('audit'), description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('before', metavar='BEFORE', help='weights of the encoder before fine-tuning')
    parser.add_argument('after', metavar='AFTER', nargs='+', help='weights after it')
    parser.add_argument('--task', action='append', default=[], required=True,
                        help='what to measure on, such as folder:PATH; may be repeated')
    parser.add_argument('--out', default=OUT, help=f'folder to write to, by default {OUT}')
    parser.add_argument('--model', default='', help='net of files of weights, such as r2plus1d_18')
    parser.add_argument('--model-args', default='', help="for the net's constructor: name=value,...")
    parser.add_argument('--frames', type=_count, default=0, help='in a clip, by default as the net expects, else 8')
    parser.add_argument('--stride', type=_count, default=1, help='frames of the video from one of a clip to the next')
    parser.add_argument('--size', type=_count, default=0,
                        help='side of the square crop in pixels, by default as the net expects, else 112')
    parser.add_argument('--bs', type=_count, default=32, help='clips in a batch')
    parser.add_argument('--workers', type=_natural, default=0, help='processes that load clips')
    parser.add_argument('--videos', type=_natural, default=0, help='most test videos of each class; 0: all')
    parser.add_argument('--no-barrier', dest='barrier', action='store_false',
                        help='do not measure between the weights, which takes four more passes')
    parser.add_argument('--extra', default='', help='more measures of tasks with labels, joined by a comma: '
                        'source_probe_tuned and source_knn_tuned, a probe and neighbours with settings that are chosen '
                        'on held-out clips; source_attentive, a probe that attends to tokens')
    parser.add_argument('--resamples', type=_count, default=2000, help='bootstrap samples')
    parser.add_argument('--level', type=float, default=.95, help='coverage of intervals')
    parser.add_argument('--seed', type=_natural, default=0, help='of the bootstrap, and of the choice of --videos')
    return parser


def _natural(text):
    try: value = int(text)
    except ValueError: raise argparse.ArgumentTypeError(f'must be a whole number, not {text!r}') from None
    if value < 0: raise argparse.ArgumentTypeError(f'must be at least 0, not {value}')
    return value


def _count(text):
    value = _natural(text)
    if value < 1: raise argparse.ArgumentTypeError('must be at least 1, not 0')
    return value


def main(
    argv:Sequence[str]|None=None, # Arguments of the command line, by default those of this process
)->int: # Exit status; errors end the process with 2, Ctrl-C with 130
    "Audit checkpoints, and write the page and tables"
    with one_line_errors(program('audit')):
        given = vars(make_parser().parse_args(argv))
        out = given.pop('out')
        check_path(out, '--out')
        with Heartbeat() as beat:
            beat.say('loading PyTorch and fastai')
            from .audit_run import run_audit  # it imports PyTorch, which takes seconds
            shown = run_audit(out, given, whole_command(), beat.say)
        print(shown)
    return 0


if __name__ == '__main__': sys.exit(main())
