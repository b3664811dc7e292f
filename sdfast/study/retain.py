"The budget of a run: which strategies adapt their strength, and by what it is measured that they keep enough."
from ..errors import InputError
from ..runtime.options import format_options, parse_options
from ..strategies.budget import Budget
from ..strategies.registry import STRATEGIES
from .config import Run
from .source import SourceModel

__all__ = ['strategy_options']


def can_adapt(
    strategy:str, # One of `STRATEGIES`
)->bool: # False without a strength, or where it cannot change while training
    "Whether a strategy takes a budget"
    return 'retain' in STRATEGIES[strategy].parameters()


def add_retain(
    retain:float, # Share to keep; 0: strengths are fixed
    names:list, # Of strategies
    args:dict, # Strategy -> its options as text
)->dict: # The same, with `retain` for each that can adapt its strength and has none of its own
    "Give all strategies of a study the same budget. Raises `InputError` if none takes one"
    adaptive = [n for n in names if can_adapt(n)] if retain else []
    if retain and not adaptive:
        raise InputError(f'--retain {retain:g}: none of the strategies {", ".join(names)} can adapt its strength while '
                         'it trains; add one, such as self_distill')
    given = {n:parse_options(args.get(n, '')) for n in adaptive}
    return args | {n:format_options(dict(retain=retain) | options) for n, options in given.items()}


def retains(
    args:dict, # Strategy -> its options as text
)->bool:
    "Whether a strategy of a study has a budget, so that a part of the source must be held out to measure it"
    return any(parse_options(text).get('retain') is not None for text in args.values())


def check_retain(
    options:dict, # Of a strategy
)->None:
    "Raise `InputError` for a share that no budget has"
    if options.get('retain') is not None: Budget(options['retain'])


def strategy_options(
    run:Run, # Its settings
    source:SourceModel, # From `load_source`
)->dict: # Keyword arguments of its callback
    "The options of a run's strategy; `retain` is measured on held-out source clips, or by drift, as `retain_by` says"
    options = run.options('strategy_args')
    # a head for all classes so far is trained on, and answers for the older ones
    shares = run.earlier and 'shared_head' in STRATEGIES[run.strategy].parameters()
    if shares: options = dict(shared_head=True) | options
    retain = options.get('retain')
    if retain is None: return options
    kept = None if run.retain_by == 'drift' else source.kept(run.retain_by)
    return options | dict(retain=Budget(retain, kept))
