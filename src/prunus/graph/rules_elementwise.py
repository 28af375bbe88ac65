"""Label rules of rarer operations that compute nothing across positions, and of random draws."""

from prunus.graph.rules_pointwise import pointwise
from prunus.graph.walk import rule

_RARER = [
    "_conj",
    "_conj_physical",
    "angle",
    "bitwise_or_",
    "bitwise_xor",
    "bitwise_xor_",
    "ceil_",
    "complex",
    "deg2rad",
    "floor_",
    "heaviside",
    "ldexp",
    "logical_and_",
    "logical_not_",
    "logical_or_",
    "logical_xor_",
    "polar",
    "rad2deg",
    "resolve_conj",
    "resolve_neg",
    "sgn_",
    "sign_",
    "signbit",
    "sinc",
    "trunc_",
]
# A cut network draws fewer numbers: where they show in what it answers, the probe refuses the group.
_DRAWS = ["bernoulli", "exponential_", "normal_", "uniform_"]

rule(*_RARER, *_DRAWS)(pointwise)
