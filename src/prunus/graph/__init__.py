"""Trace a network's coupled channels, cut along a plan, certify the cut."""

from prunus.graph.attention import plain_attention
from prunus.graph.certify import certify, masked_outputs
from prunus.graph.certify_rebuild import certify_rebuild
from prunus.graph.connections import held_connections, hold_connections_
from prunus.graph.cut import cut, network_shape, plan_of
from prunus.graph.difference import relative_difference
from prunus.graph.encoders import call_parts_, pad_plainly_, without_packing
from prunus.graph.groups import Trace
from prunus.graph.inputs import (
    Inputs,
    call,
    check_inputs,
    check_network,
    first_sample,
    output_tensors,
)
from prunus.graph.trace import trace
from prunus.graph.units import Choice, Group, UnitAxis
from prunus.graph.watch import Reader, watch, without_padding
from prunus.graph.word_tables import word_tables

__all__ = [
    "Choice",
    "Group",
    "Inputs",
    "Reader",
    "Trace",
    "UnitAxis",
    "call",
    "call_parts_",
    "certify",
    "certify_rebuild",
    "check_inputs",
    "check_network",
    "cut",
    "first_sample",
    "held_connections",
    "hold_connections_",
    "masked_outputs",
    "network_shape",
    "output_tensors",
    "pad_plainly_",
    "plain_attention",
    "plan_of",
    "relative_difference",
    "trace",
    "watch",
    "without_packing",
    "without_padding",
    "word_tables",
]
