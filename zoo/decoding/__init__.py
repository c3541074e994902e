"""Generation in fewer passes, over any causal LM: one tree, one verifier, one cache."""

from zoo.decoding.generate import Acceptance, Generation, generate
from zoo.decoding.method import Method, Run, list_methods, make_method, register_method
from zoo.decoding.sampling import Sampler
from zoo.decoding.tree import Tree, best_static_tree
from zoo.decoding.verify import VERIFIERS, Draft, Verdict, Verifier, make_verifier

__all__ = [
    "VERIFIERS",
    "Acceptance",
    "Draft",
    "Generation",
    "Method",
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
    "register_method",
]
