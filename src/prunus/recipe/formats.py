"""Whether networks can be trained in the number formats and memory layouts that are asked for."""

from collections.abc import Iterable, Sequence

from prunus.device import resolve_device
from prunus.errors import InputError, kind_and_line
from prunus.recipe.actions import Action
from prunus.recipe.steps import Train
from prunus.recipe.subject import Subject
from prunus.train import Execution, TrainConfig
from prunus.train.precision import TRIAL_SAMPLES, runs_in, training_error


def require_formats(
    rows: Iterable[tuple[Sequence[Action], Subject]], dense: Subject, device: str
) -> None:
    """Refuse a training whose network cannot be trained, or a format that it or its teacher cannot run in.

    Args:
        rows: Actions of each run, and what they begin with.
        dense: The teacher of all.
        device: Of the trainings.

    Raises:
        InputError: There is one; names its step.
    """
    seen = set()
    for actions, own in rows:
        trainings = [(a.path, a.step) for a in actions if isinstance(a.step, Train)]
        for path, step in trainings:
            for subject in (own, dense) if step.teaches else (own,):
                format_of = (id(subject), step.precision, step.layout, step.batch_size == 1)
                if format_of not in seen:
                    seen.add(format_of)
                    require_format(subject, step, device, f"{path}.", trains=subject is own)


def require_format(
    subject: Subject, config: TrainConfig, device: str, where: str = "", *, trains: bool = True
) -> None:
    """Refuse a network that cannot be trained, or not in a format, by a pass; what is ``auto`` is plain.

    Args:
        subject: The network and its data.
        config: Of the training.
        device: Of the training.
        where: Of the training in the recipe, with a dot behind it.
        trains: False: the network is the teacher, and need only answer.

    Raises:
        InputError: It cannot, or has nothing to train.
    """
    if not any(parameter.requires_grad for parameter in subject.network.parameters()):
        raise InputError(
            f"{where.rstrip('.') or 'training'}: {subject.source.model} has no parameter that requires a "
            "gradient; unfreeze some (requires_grad_)"
        )
    if trains:
        _require_pass(subject, config, device, where)
    plain = Execution()
    asked = Execution(
        plain.precision if config.precision == "auto" else config.precision,
        plain.layout if config.layout == "auto" else config.layout,
    )
    if asked == plain:
        return
    sample = next(iter(subject.data.train.batches(TRIAL_SAMPLES)))
    place = resolve_device(device)

    def runs(choice: Execution) -> bool:
        return runs_in(subject.network, sample, choice, place)

    if runs(asked) or not runs(plain):
        return
    wrong, right = f"precision={asked.precision}", f"precision={plain.precision}"
    if runs(Execution(asked.precision, plain.layout)):
        wrong, right = f"layout={asked.layout}", f"layout={plain.layout}"
    raise InputError(
        f"{where}{wrong}: {subject.source.model} cannot run in it on device '{device}'; set {right}, "
        "or auto, which takes what runs"
    )


def _require_pass(subject: Subject, config: TrainConfig, device: str, where: str) -> None:
    """Refuse a network that raises in training, by a pass in train mode over a sample or two."""
    count = min(2, config.batch_size)
    error = training_error(
        subject.network, next(iter(subject.data.train.batches(count)))[0], resolve_device(device)
    )
    if error is None:
        return
    raise InputError(
        f"{where.rstrip('.') or 'training'}: {subject.source.model} cannot be trained: in train mode it "
        f"raised {kind_and_line(error)}; a training calls it with a batch (of {config.batch_size} here) and "
        "needs logits that gradients flow from"
    ) from error
