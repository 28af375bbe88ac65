"""The options that commands share: name, type and help text. No torch."""

from pathlib import Path
from typing import Annotated

import typer

_NETWORK, _CUT, _TRAIN, _RUN = "Network and data", "Cut", "Training", "Run"
_SEARCH = "Scoring of candidates (methods that search)"
# What prunus.cli.training gives a network that is not cut.
_WHOLE_RATES = "by default sgd 0.1 (texts of hf: 0.01), adamw 2e-3 (texts 5e-4, hf: 5e-5)"

Model = Annotated[
    str | None,
    typer.Option(
        help="Zoo name (digits_cnn, mobilenet_v2, resnet18 to resnet56, vgg16_bn; bert_tiny, bert_small, "
        "bilstm, textcnn), hf:NAME, timm:NAME, torchvision:NAME or FILE.py:FACTORY.",
        rich_help_panel=_NETWORK,
    ),
]
Arguments = Annotated[
    list[str] | None,
    typer.Option(
        "--arguments",
        help="key=value for the model's constructor, such as width=0.5; repeatable.",
        rich_help_panel=_NETWORK,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint (.safetensors, or .pt, .pth, .th with plain tensors).",
        rich_help_panel=_NETWORK,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Images: digits, cifar10, cifar100, imagefolder:DIR. Texts: text:FILE (CSV, TSV, JSONL, "
        "parquet), docstrings, sst2, sms, ru_toxic, hfdata:NAME.",
        rich_help_panel=_NETWORK,
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        help="Pixels of imagefolder:DIR: 224, as by default, or height and width: 32,48.",
        rich_help_panel=_NETWORK,
    ),
]
TextSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        help="key=value for texts, such as text_column=comment or max_length=64; repeatable.",
        rich_help_panel=_NETWORK,
    ),
]
Optimizer = Annotated[
    str | None,
    typer.Option(
        help="sgd or adamw, of all trainings but those of recipes and suites; by default adamw for "
        "networks that read texts.",
        rich_help_panel=_TRAIN,
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="Repeatable; random, l1, l2-global, bn-scale, taylor, random-search and scratch "
        "by default.",
        rich_help_panel=_CUT,
    ),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="METHOD.key=value; repeatable.", rich_help_panel=_CUT),
]
Suite = Annotated[
    str | None,
    typer.Option(
        help="text: quantization, low rank, pruning, distillation and their chains for networks that "
        "read texts, deployed, instead of --method.",
        rich_help_panel=_CUT,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="Budget: macs=0.5 (share of dense), params=500000, size=2e6 (bytes).",
        rich_help_panel=_CUT,
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        help="Glob of modules whose outputs stay whole; repeatable.", rich_help_panel=_CUT
    ),
]
MinUnits = Annotated[
    int | None,
    typer.Option(
        help="Fewest units (channels, or heads and groups of them) that stay in a group; 1 by default.",
        rich_help_panel=_CUT,
    ),
]
RoundTo = Annotated[
    int | None,
    typer.Option(help="Kept channels are a multiple of this; 1 by default.", rich_help_panel=_CUT),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        help="Epochs of fine-tuning after the cut; none by default.", rich_help_panel=_TRAIN
    ),
]
SuiteEpochs = Annotated[
    int | None,
    typer.Option(
        help="Epochs of fine-tuning after the cut; none by default, 1 in the rows of --suite text, "
        "whose students have 6.",
        rich_help_panel=_TRAIN,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        help="Peak learning rate after the cut; by default sgd 0.02, adamw 5e-4 (texts 1e-4).",
        rich_help_panel=_TRAIN,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="float32 or bfloat16, of trainings and of scoring; by default what a short trial finds "
        "faster: give it where a run must be repeatable.",
        rich_help_panel=_TRAIN,
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        help="contiguous or channels_last, of images; by default what a short trial finds faster.",
        rich_help_panel=_TRAIN,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Samples per step; 128 by default.", rich_help_panel=_TRAIN),
]
SuiteBatchSize = Annotated[
    int | None,
    typer.Option(
        help="Samples per step; 128 by default, 32 in the rows of --suite text.",
        rich_help_panel=_TRAIN,
    ),
]
Distill = Annotated[
    float | None,
    typer.Option(
        help="Weight of the dense network as teacher, 0 to 1; 0, as by default: labels alone.",
        rich_help_panel=_TRAIN,
    ),
]
TrainEpochs = Annotated[
    int | None,
    typer.Option(help="Train the dense network first, so long.", rich_help_panel=_TRAIN),
]
TrainLearningRate = Annotated[
    float | None,
    typer.Option(
        "--train-lr",
        help=f"Its peak learning rate; {_WHOLE_RATES}.",
        rich_help_panel=_TRAIN,
    ),
]
ScratchEpochs = Annotated[
    int | None,
    typer.Option(
        help="Epochs of method scratch; by default --train-epochs plus --epochs. Without --epochs "
        "nothing is trained after the cut, nor is scratch.",
        rich_help_panel=_TRAIN,
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Run folder: steps, artifact, report.", rich_help_panel=_RUN)
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on in --out where a run stopped; a folder that is not there yet is made.",
        rich_help_panel=_RUN,
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="Where candidates of a search are scored (not the runtime of the step deploy). serial: in "
        "this process; processes: in --workers processes; ray: on a Ray cluster (extra ray; README "
        "tells how to install it). The result is the same; --resume may change it.",
        rich_help_panel=_SEARCH,
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        help="Candidates scored at a time; they share --threads.", rich_help_panel=_SEARCH
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to join: auto, or HOST:PORT; by default one is started here.",
        rich_help_panel=_SEARCH,
    ),
]
MemoryMb = Annotated[
    int,
    typer.Option(
        "--memory-mb",
        help="Megabytes of activations that each worker keeps for candidates that agree in their "
        "first layers; 0: none.",
        rich_help_panel=_SEARCH,
    ),
]
Device = Annotated[str, typer.Option(help="cpu or cuda.", rich_help_panel=_RUN)]
Threads = Annotated[
    int | None,
    typer.Option(help="CPU threads of PyTorch; workers share them.", rich_help_panel=_RUN),
]
Latency = Annotated[
    bool, typer.Option("--latency/--no-latency", help="Measure latency.", rich_help_panel=_RUN)
]
# Of the commands that cut nothing.
TrainingLearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        help=f"Peak learning rate; {_WHOLE_RATES}.",
        rich_help_panel=_TRAIN,
    ),
]
TrainingOptimizer = Annotated[
    str | None,
    typer.Option(
        help="sgd or adamw; by default adamw for networks that read texts.", rich_help_panel=_TRAIN
    ),
]
TrainingPrecision = Annotated[
    str | None,
    typer.Option(
        help="float32 or bfloat16; by default what a short trial finds faster: give it where a run "
        "must be repeatable.",
        rich_help_panel=_TRAIN,
    ),
]
TrainingOut = Annotated[
    Path | None,
    typer.Option(help="Run folder: run.json, training.json, the artifact.", rich_help_panel=_RUN),
]
OwnThreads = Annotated[
    int | None, typer.Option(help="CPU threads of PyTorch.", rich_help_panel=_RUN)
]
Method = Annotated[str | None, typer.Option(help="See prunus methods.", rich_help_panel=_CUT)]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(help="key=value for the method; repeatable.", rich_help_panel=_CUT),
]
Seed = Annotated[int | None, typer.Option(help="Of search and training.", rich_help_panel=_RUN)]
RecipeFile = Annotated[
    Path | None,
    typer.Option(help="YAML with the steps, instead of --method and --epochs."),
]
Seeds = Annotated[
    str, typer.Option(help="Separated by commas; 3 for a spread.", rich_help_panel=_RUN)
]
RecipeFiles = Annotated[
    list[Path] | None,
    typer.Option(help="YAML whose steps are a method of their own; repeatable."),
]
