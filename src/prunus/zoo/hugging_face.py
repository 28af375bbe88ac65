"""Classifiers of Hugging Face: by name on the hub, from a folder, or drawn from a config."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from safetensors import SafetensorError
from torch import nn

from prunus.errors import InputError, first_line
from prunus.extras import require_extra
from prunus.records import Source

_TASKS = ("image", "text")
_INLINE = "config"
INLINE = f"hf:{_INLINE}"
"""A network of its arguments alone, and no folder of that name: it has no vocabulary yet."""
_POOLER = "pooler"  # of a bare encoder: trained by few, and drawn with the classifier
# Where a network and its weights lie: read by the library with the config, and then dropped.
_PLACE = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
_LOADING = ("variant", "key_mapping", "low_cpu_mem_usage", "device_map")  # hidden in **kwargs


def classifies_texts(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a network takes pieces of texts: as its argument ``task`` says, or else its config.

    Raises:
        InputError: The config cannot be found.
        MissingExtraError: transformers is not installed.
    """
    task = arguments.get("task")
    if task is not None:
        return bool(task == "text")
    transformers = require_extra("transformers", "text")
    mapping = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    return type(_config_alone(transformers, name, arguments)) in mapping


def padding_number(source: Source) -> int | None:
    """The piece that an ``hf:`` network of its own config takes for padding; None: it tells none.

    Raises:
        InputError: The config cannot be found.
        MissingExtraError: transformers is not installed.
    """
    scheme, _, name = source.model.partition(":")
    if scheme != "hf" or name == _INLINE:
        return None
    transformers = require_extra("transformers", "text")
    number = getattr(_config_alone(transformers, name, source.arguments), "pad_token_id", None)
    return number if isinstance(number, int) else None


def from_hugging_face(name: str, arguments: dict[str, Any]) -> nn.Module:
    """A classifier in float32.

    Args:
        name: On the hub, or of a folder; ``config``: of the arguments alone.
        arguments: Of its config, ``pretrained`` (its weights are fetched) and ``task`` where given.

    Raises:
        InputError: It cannot be built, or its weights leave a part of it as it was drawn.
        MissingExtraError: transformers is not installed.
    """
    transformers = require_extra("transformers", "text")
    if "trust_remote_code" in arguments:
        raise InputError(
            "argument 'trust_remote_code' is not allowed: use FILE.py:FACTORY for own code"
        )
    task, pretrained = arguments.pop("task", None), arguments.pop("pretrained")
    if name == _INLINE:
        pretrained = False  # a config alone has no weights
    with _told_as_input_error(name), _quiet(transformers):
        config, rest = _config(transformers, name, arguments)
        auto = _auto_class(transformers, name, config, task)
        if pretrained:
            network, told = auto.from_pretrained(
                name,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **{key: arguments[key] for key in _PLACE if key in arguments},
                **rest,
            )
        else:
            loading = {*inspect.signature(transformers.PreTrainedModel.from_pretrained).parameters}
            kept = {k: v for k, v in rest.items() if k not in loading.union(_PLACE, _LOADING)}
            network, told = auto.from_config(config, trust_remote_code=False, **kept), None
    if not isinstance(network, nn.Module):
        raise InputError(f"model 'hf:{name}' is no torch network: {type(network).__name__}")
    if told is not None:
        _require_loaded(network, name, told["missing_keys"], told["unexpected_keys"])
    return network.float()  # checkpoints are often stored in half precision


def _require_loaded(
    network: nn.Module, name: str, missing: Iterable[str], unexpected: Iterable[str]
) -> None:
    """Refuse weights that leave a part of the network as it was drawn, its classifier apart.

    The library draws what a checkpoint lacks, and says so in a warning alone.
    """
    prefix = str(getattr(network, "base_model_prefix", ""))
    body = f"{prefix}." if prefix in dict(network.named_children()) else ""
    lost = sorted(
        key for key in missing if key.startswith(body) and _POOLER not in key.split(".")[:-1]
    )
    if not lost:
        return
    unknown = sorted(unexpected)
    others = f", and hold {len(unknown)} unknown ones, such as '{unknown[0]}'" if unknown else ""
    raise InputError(
        f"model 'hf:{name}': its weights lack {len(lost)} tensors outside the classifier, such as "
        f"'{lost[0]}'{others}; save them again with save_pretrained of this network, or set the "
        "argument 'pretrained' to false to draw all"
    )


def _config(
    transformers: ModuleType, name: str, arguments: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The config of a network, and the arguments that are none of its own.

    ``hf:config`` builds one from the arguments alone: ``model_type`` and the sizes.
    """
    given = dict(arguments)
    classes = given.pop("num_classes", None)
    if classes is not None:
        given.setdefault("num_labels", classes)
    if name == _INLINE:
        kind = given.pop("model_type", None)
        if kind is None:
            raise InputError("model 'hf:config' needs the argument model_type, such as bert")
        return transformers.AutoConfig.for_model(kind, **given), {}
    config, rest = transformers.AutoConfig.from_pretrained(
        name, return_unused_kwargs=True, trust_remote_code=False, **given
    )
    return config, rest


def _config_alone(transformers: ModuleType, name: str, arguments: Mapping[str, Any]) -> Any:
    """The config of a network that is not built."""
    with _told_as_input_error(name):
        config, _ = _config(transformers, name, arguments)
    return config


@contextmanager
def _told_as_input_error(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(
            f"model 'hf:{name}' cannot be loaded: {first_line(error)}; give a hub name or a "
            "folder with config.json and model.safetensors, or hf:config with model_type and sizes"
        ) from error
    except RuntimeError as error:  # of weights in other shapes than the config says
        raise InputError(
            f"model 'hf:{name}' cannot be loaded: its weights do not fit, most often a classifier of "
            "other classes than the data's; give data with as many classes, or the argument "
            "ignore_mismatched_sizes=true for a fresh classifier"
        ) from error


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Without the library's note on weights that are drawn: a fresh head is what was asked for."""
    logging = transformers.utils.logging
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def _auto_class(transformers: ModuleType, name: str, config: Any, task: str | None) -> Any:
    """The auto class for the task, which the config decides where only one is possible."""
    autos = {
        "image": transformers.AutoModelForImageClassification,
        "text": transformers.AutoModelForSequenceClassification,
    }
    mappings = {
        "image": transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        "text": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    }
    if task is not None and task not in autos:
        raise InputError(f"argument 'task' is {task!r}: use one of {', '.join(_TASKS)}")
    able = [key for key in _TASKS if type(config) in mappings[key]]
    if not able or (task is not None and task not in able):
        raise InputError(
            f"model 'hf:{name}' ({config.model_type}) has no classifier for "
            f"{task or 'images or texts'}: use another network, or FILE.py:FACTORY"
        )
    if task is None and len(able) > 1:
        raise InputError(
            f"model 'hf:{name}' classifies images and texts: "
            "set the argument 'task' to image or text"
        )
    return autos[task or able[0]]
