"""Generation in fewer passes, over any causal LM: one tree, one verifier, one cache."""

from zoo.decoding.generate import generate
from zoo.decoding.generation import Acceptance, Generation
from zoo.decoding.method import (
    Method,
    Need,
    Run,
    list_methods,
    make_method,
    method_class,
    register_method,
)
from zoo.decoding.sampling import Sampler
from zoo.decoding.tree import Tree, best_static_tree
from zoo.decoding.verify import VERIFIERS, Draft, Verdict, Verifier, make_verifier

__all__ = [
    "VERIFIERS",
    "Acceptance",
    "Draft",
    "Generation",
    "Method",
    "Need",
    "Run",
    "Sampler",
    "Tree",
    "Verdict",
    "Verifier",
    "best_static_tree",
    "generate",
    "list_methods",
    "make_method",
    "make_verifier",
    "method_class",
    "register_method",
]
