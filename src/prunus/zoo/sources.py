"""Build the network that a ``Source`` names: zoo, Hugging Face, timm, torchvision, own file."""

import copy
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.parameter import UninitializedParameter

from prunus.errors import InputError, first_line
from prunus.extras import require_extra
from prunus.records import Source
from prunus.seeding import seeded
from prunus.zoo.catalog import build, is_text, zoo_names
from prunus.zoo.own_code import importable
from prunus.zoo.weights import load_weights

_HF_TASKS = ("image", "text")
_INLINE = "config"
INLINE = f"hf:{_INLINE}"
"""A network of its arguments alone, and no folder of that name: it has no vocabulary yet."""
LIBRARIES = ("hf:", "timm:", "torchvision:")
"""Whose networks come with trained weights that are fetched."""
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
_TRAINED = ("pretrained", "weights", "checkpoint")  # arguments by which factories load weights


def load_source(source: Source) -> nn.Module:
    """Build the network of a source, load its weights and set it to evaluation mode.

    ``source.model`` is a name of the zoo, ``hf:NAME`` or ``hf:FOLDER`` (a classifier of images or
    texts), ``timm:NAME``, ``torchvision:NAME`` or ``FILE.py:FACTORY``. ``source.arguments`` go
    to the constructor. The argument ``pretrained`` of hf, timm and torchvision says whether their
    own weights are fetched: by default where ``source.weights`` names none. ``hf:config`` builds a
    network with random weights from its arguments (``model_type`` and sizes); ``num_classes`` is the
    number of its labels. ``task`` ("image" or
    "text") settles an hf network that can do both. Weights not loaded are drawn from a fixed seed,
    and the global random state is left as it was.

    Raises:
        InputError: The network cannot be built, or the weights do not fit.
        MissingExtraError: The package that the source needs is not installed.
    """
    scheme, separator, name = source.model.partition(":")
    makers: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {
        "hf": _from_hugging_face,
        "timm": _from_timm,
        "torchvision": _from_torchvision,
    }
    arguments = dict(source.arguments)
    if separator and scheme in makers:
        if not name:
            raise InputError(f"model '{source.model}' names no network: write {scheme}:NAME")
        arguments.setdefault("pretrained", source.weights is None)
        with seeded(0):
            network = makers[scheme](name, arguments)
    elif is_own_file(source.model):
        with seeded(0):
            network = _from_file(source.model, arguments)
    else:
        _require_zoo(source.model)
        network = build(source.model, **arguments)
    if source.weights is not None:
        load_weights(network, source.weights)
    return network.eval()


def _require_zoo(model: str) -> None:
    """Refuse a name that no source knows.

    Raises:
        InputError: It is none of the zoo's.
    """
    if model in zoo_names():
        return
    if (Path(model) / "artifact.json").is_file():
        raise InputError(
            f"model '{model}' is an artifact, a network that was cut: read it with prunus.load"
        )
    raise InputError(
        f"model '{model}' is unknown: use one of {', '.join(zoo_names())}, or hf:NAME, timm:NAME, "
        "torchvision:NAME, file.py:factory"
    )


def without_weights(source: Source) -> Source:
    """The same constructor, spared from fetching weights that would be overwritten."""
    arguments = dict(source.arguments)
    if source.model.startswith(LIBRARIES):
        arguments["pretrained"] = False
    return source.model_copy(update={"weights": None, "arguments": arguments}, deep=True)


def is_own_file(model: str) -> bool:
    """Whether a model is named by its factory in a file: what it reads, its data alone tells."""
    return ".py:" in model or model.endswith(".py")


def is_drawn(source: Source, network: nn.Module) -> bool:
    """Whether a source without a file of weights draws them: another seed gives it others.

    Args:
        source: Builds the network, once more.
        network: As ``load_source`` built it.

    Parameters of one value, such as a norm's, tell nothing. A factory that sets a seed of its own
    counts as one that loads its weights.
    """
    fetched = source.model.startswith(LIBRARIES)
    asked = {"pretrained": fetched and source.model != INLINE, **source.arguments}
    if source.weights is not None or any(asked.get(name) for name in _TRAINED):
        return False
    if not is_own_file(source.model):
        return True
    with seeded(1):
        other = dict(_from_file(source.model, dict(source.arguments)).named_parameters())
    told = [
        (name, parameter)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
        and parameter.numel()
        and bool((parameter != parameter.flatten()[0]).any())
    ]
    return all(
        name in other and not torch.equal(parameter, other[name]) for name, parameter in told
    )


def reads_text(source: Source) -> bool:
    """Whether the network of a source takes pieces of texts: by its name in the zoo, or its config.

    Of a user's own file only running it would tell: it counts as not.

    Raises:
        InputError: The config of an ``hf:`` network cannot be found.
        MissingExtraError: transformers is not installed.
    """
    scheme, _, name = source.model.partition(":")
    if scheme != "hf":
        return is_text(source.model)
    arguments = dict(source.arguments)
    arguments.pop("pretrained", None)
    task = arguments.pop("task", None)
    if task is not None:
        return bool(task == "text")
    transformers = require_extra("transformers", "text")
    with _told_as_input_error(name):
        config, _ = _config(transformers, name, arguments)
    mapping = transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    return type(config) in mapping


def padding_number(source: Source) -> int | None:
    """The piece that an ``hf:`` network of its own config takes for padding; None: it tells none.

    Raises:
        InputError: The config cannot be found.
        MissingExtraError: transformers is not installed.
    """
    scheme, _, name = source.model.partition(":")
    if scheme != "hf" or name == _INLINE:
        return None
    arguments = {k: v for k, v in source.arguments.items() if k not in ("pretrained", "task")}
    transformers = require_extra("transformers", "text")
    with _told_as_input_error(name):
        config, _ = _config(transformers, name, arguments)
    number = getattr(config, "pad_token_id", None)
    return number if isinstance(number, int) else None


def _from_hugging_face(name: str, arguments: dict[str, Any]) -> nn.Module:
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
    transformers: ModuleType, name: str, arguments: dict[str, Any]
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
        raise InputError(f"argument 'task' is {task!r}: use one of {', '.join(_HF_TASKS)}")
    able = [key for key in _HF_TASKS if type(config) in mappings[key]]
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


def _from_timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    timm = require_extra("timm", "zoo")
    try:
        network = timm.create_model(name, **arguments)
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(
            f"model 'timm:{name}' cannot be built: {first_line(error)}; see timm.list_models()"
        ) from error
    return _require_module(network, f"timm:{name}")


def _from_torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    models = require_extra("torchvision.models", "zoo")
    pretrained = arguments.pop("pretrained")
    try:
        network = _require_module(
            models.get_model(name, weights=None, **arguments), f"torchvision:{name}"
        )
        if pretrained:
            # Not through get_model: it would unpickle the download.
            url = models.get_model_weights(name).DEFAULT.url
            state = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
            network.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError, OSError) as error:
        raise InputError(
            f"model 'torchvision:{name}' cannot be built: {first_line(error)}; "
            "see torchvision.models.list_models(), or set the argument 'pretrained' to false"
        ) from error
    return network


def _from_file(model: str, arguments: dict[str, Any]) -> nn.Module:
    """Call the factory of a user's own file. The file is run: it is trusted as the user's code."""
    path_text, _, factory_name = model.rpartition(":")
    if not path_text.endswith(".py") or not factory_name.isidentifier():
        raise InputError(f"model '{model}' names no factory: write FILE.py:FACTORY")
    path = Path(path_text)
    if not path.is_file():
        raise InputError(
            f"model '{model}': the file '{path}' does not exist: give an existing file"
        )
    with importable(path):
        made = _made(model, _import_file(path), factory_name, arguments)
    copied(made, model)  # else it would fail where it is traced, or saved after the training
    return made


def _made(
    model: str, module: ModuleType, factory_name: str, arguments: dict[str, Any]
) -> nn.Module:
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        own = sorted(
            key
            for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        )
        raise InputError(
            f"model '{model}': '{model.rpartition(':')[0]}' has no function '{factory_name}': "
            f"it defines {', '.join(own) or 'none'}"
        )
    try:
        network = factory(**arguments)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise InputError(
            f"model '{model}': {factory_name}({', '.join(arguments)}) raised "
            f"{type(error).__name__}: {first_line(error)}; mend the file or the arguments"
        ) from error
    return _require_module(network, model)


def copied(network: nn.Module, model: str) -> nn.Module:
    """A copy of a network.

    Raises:
        InputError: It has lazy layers that never ran, or tensors that are computed from others.
    """
    lazy = [name for name, p in network.named_parameters() if isinstance(p, UninitializedParameter)]
    if lazy:
        raise InputError(
            f"model '{model}' has lazy layers without shapes ('{lazy[0].rpartition('.')[0]}'): give "
            "their sizes, or run the network once on a batch where it is built"
        )
    try:
        return copy.deepcopy(network)
    except Exception as error:  # a module's own __deepcopy__ may raise anything
        raise InputError(
            f"model '{model}' cannot be copied ({first_line(error)}): a layer keeps a tensor that is "
            "computed from others, as the old torch.nn.utils.weight_norm and spectral_norm do; take "
            "those of torch.nn.utils.parametrizations, or remove_weight_norm before"
        ) from error


class _TextLoader(SourceFileLoader):
    """Runs the text as it is now: bytecode is told from it by its size and whole seconds alone."""

    def get_code(self, fullname: str) -> CodeType:
        """Compiled anew."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _import_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own name."""
    resolved = path.resolve()
    name = f"prunus_source_{resolved.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise InputError(f"'{path}' cannot be imported: give a Python file")
    if isinstance(spec.loader, SourceFileLoader):
        spec.loader = _TextLoader(name, str(resolved))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and inspect look a class's module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        del sys.modules[name]
        raise InputError(
            f"'{path}' cannot be imported: {type(error).__name__}: {first_line(error)}; "
            "mend the file"
        ) from error
    return module


def _require_module(network: object, model: str) -> nn.Module:
    if not isinstance(network, nn.Module):
        raise InputError(
            f"model '{model}' gave {type(network).__name__}: "
            "the factory must return a torch.nn.Module"
        )
    return network
