"""What a recipe deploys to, asked before anything is computed."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from prunus.progress import Progress
from prunus.quantize import Deployment, deploy, require_deployable, require_shape
from prunus.recipe.actions import Action, searches
from prunus.recipe.deployed import plain_inputs
from prunus.recipe.measure import phase
from prunus.recipe.steps import Deploy, Student, Train
from prunus.recipe.subject import Subject


def require_engines(
    subject: Subject, runs: Sequence[Sequence[Action]], progress: Progress, *, trains: bool = False
) -> None:
    """Refuse a deployment that could not be written, whatever the steps before it make.

    Where a training or a search comes first, the dense network is written once to see: in float32, and
    for PyTorch in the formats asked for, which are not for every network.

    Args:
        subject: The dense network.
        runs: Steps of each recipe.
        progress: Told of the trial.
        trains: Whether the dense network itself is trained first.

    Raises:
        InputError: Nothing says how PyTorch builds the network again, or it cannot be written.
        MissingExtraError: An engine is not installed.
    """
    tried: set[Deployment] = set()
    for actions in runs:
        students = any(isinstance(action.step, Student) for action in actions)
        long = trains or any(isinstance(a.step, Train) or searches(a) for a in actions)
        for action in actions:
            if not isinstance(action.step, Deploy):
                continue
            asked = action.step.deployment
            has_source = subject.rebuildable or students
            require_deployable(asked, has_source=has_source)
            longest = subject.data.max_length
            require_shape(asked, has_length=longest is not None, longest=longest)
            plain_inputs(subject.inputs)
            trial = _without_samples(asked)
            if long and not students and trial not in tried:
                tried.add(trial)
                with phase(progress, f"try {asked.engine}"):
                    _write(subject, trial)


def _without_samples(asked: Deployment) -> Deployment:
    """What can be written of a deployment before anything is measured on samples."""
    if asked.engine == "torch":
        return asked.model_copy(update={"rounding": "auto"})
    return Deployment(engine=asked.engine, shape=asked.shape)


def _write(subject: Subject, deployment: Deployment) -> None:
    with tempfile.TemporaryDirectory() as place:
        deploy(
            subject.network,
            Path(place) / "deployed",
            deployment,
            inputs=plain_inputs(subject.inputs),
            source=subject.source if subject.rebuildable else None,
            dynamic_length=subject.data.max_length is not None,
        )
