"What a study's settings say about its model: whether it fits, and the weights that it starts from."
from ..errors import InputError
from ..models.encoders import create_model, has_weights, is_model, model_id
from ..models.fits import check_fits
from ..runtime.options import parse_options
from ..runtime.store import file_id
from .settings import Settings

__all__ = ['check_model']


def check_name(
    settings:Settings,
)->None:
    "Raise `InputError` for an unknown model, with the names of similar ones"
    if not is_model(settings.model): create_model(settings.model, 2)


def check_model(
    settings:Settings, # Of the study
    n_classes:int, # Of the source task
    size:int, # Side of the clips in pixels
)->None:
    "Raise `InputError` for weights of another model, unknown options, and clips that the model cannot take"
    model = create_model(settings.model, n_classes, settings.init, **model_options(settings))
    try: check_fits(model[0], settings.frames, size)
    except InputError as e: raise InputError(f'--frames {settings.frames} --size {size}: {e}') from None


def model_options(
    settings:Settings,
)->dict: # Keyword arguments
    "The options of the model's constructor"
    return parse_options(settings.model_args, '--model-args')


def weight_ids(
    settings:Settings,
)->list[str]: # At most two hashes
    "Hashes of the files that the model and its initial weights are read from"
    return [*filter(None, [model_id(settings.model, **model_options(settings)), file_id(settings.init)])]


def starts_trained(
    settings:Settings,
)->bool:
    "Whether the encoder comes with weights"
    return has_weights(settings.model, settings.init, **model_options(settings))


def source_epochs(
    settings:Settings,
)->int:
    "Epochs of the source stage; by default 6, or none if the encoder comes with weights"
    if settings.source_epochs is not None: return settings.source_epochs
    return 0 if starts_trained(settings) else 6


def default_size(
    specs:list, # Of tasks
)->int: # Pixels
    "Default side of the clips' square"
    made = dict(moving_digits=40, moving_photos=48)
    sizes = {made.get(s.partition(':')[0].partition(',')[0], 112) for s in specs}
    return max(sizes)
