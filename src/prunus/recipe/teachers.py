"""Whether the dense network can teach what a recipe has it teach."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch

from prunus.data import composed_texts
from prunus.errors import PrunusError
from prunus.recipe.actions import Action
from prunus.recipe.steps import Prune, Student, Train
from prunus.recipe.subject import Subject
from prunus.recipe.texts import attention_shown
from prunus.recipe.words import require_inheritable
from prunus.train import Execution, TrainConfig
from prunus.train.fit import TEXTS_SEED
from prunus.train.teacher import Teaching


class Lessons:
    """Tries what each training compares on two samples, with weights as they are; each once.

    Args:
        dense: The teacher.
    """

    def __init__(self, dense: Subject) -> None:
        self._dense = dense
        self._known: dict[tuple[int, str], PrunusError | None] = {}

    def first_error(self, actions: Sequence[Action], own: Subject) -> PrunusError | None:
        """Why a student or a training of a run cannot be taught: the first one's error, or None.

        Args:
            actions: Of the run.
            own: What it begins with, the dense network or a student.
        """
        whole = True
        for action in actions:
            step = action.step
            if isinstance(step, Student) and step.embeddings == "teacher":
                try:
                    require_inheritable(own.network, self._dense.network, own.inputs)
                except PrunusError as misfit:
                    return misfit
            whole = whole and not isinstance(step, Prune)
            if not isinstance(step, Train) or not step.teaches:
                continue
            for student, config in self._compared(step.config(fresh=False), own, whole=whole):
                key = (id(student), config.model_dump_json())
                if key not in self._known:
                    self._known[key] = self._error(student, config)
                if error := self._known[key]:
                    return error
        return None

    def _compared(
        self, config: TrainConfig, own: Subject, *, whole: bool
    ) -> Iterator[tuple[Subject, TrainConfig]]:
        """Students to compare the teacher with.

        A cut may change layers and heads, so that behind one the logits alone are the student's; that
        the teacher has layers to show is seen on itself.
        """
        if whole or not config.teaches_layers:
            yield own, config
            return
        yield self._dense, config
        if config.distill_alpha:
            logits = {"distill_hidden": 0.0, "distill_attention": 0.0}
            yield own, config.model_copy(update=logits)

    def _error(self, student: Subject, config: TrainConfig) -> PrunusError | None:
        train = self._dense.data.train
        own, teacher = copy.deepcopy(student.network), copy.deepcopy(self._dense.network)
        sample = next(iter(train.batches(2)))[0]
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            for network in (own, teacher) if config.distill_attention else ():
                stack.enter_context(attention_shown(network))
            try:
                lesson = Teaching(own, teacher, config, Execution(), torch.device("cpu"))
                lesson.prepare(sample, [], seed=0)
                if config.distill_texts:
                    beside = self._dense.data.unlabeled
                    composed_texts(train, config.distill_texts, seed=TEXTS_SEED, beside=beside)
            except PrunusError as error:
                return error
        return None
