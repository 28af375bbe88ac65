"""The engine that scores thousands of candidates: slices, not copies; halving; memory of results."""

from prunus.candidates.engine import Engine
from prunus.candidates.options import Candidate, Quantity, Scored, Scoring, ranked

__all__ = ["Candidate", "Engine", "Quantity", "Scored", "Scoring", "ranked"]
