"""Fresh weights for a cut network: the small network from scratch."""

import torch
from torch import nn

_STD = 0.02  # of tensors whose module has no initialization of its own (Devlin et al., BERT, 2019)


def reinitialize_(network: nn.Module, seed: int) -> None:
    """Draw all weights anew, in place.

    Modules with ``reset_parameters`` draw their own (all of ``torch.nn`` do, running statistics
    included). Parameters of other modules: matrices and larger from a normal distribution, biases 0,
    other vectors (scales) 1. What connections hold at zero must be zeroed again by the caller.

    Args:
        network: On the CPU.
        seed: Of the weights; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for module in network.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(
                module, "_reset_parameters", None
            )
            if callable(reset):
                reset()
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=_STD)
                else:
                    nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
