"""Seeded random inputs, valid and invalid: ``python -m tests.fuzz --seed N --cases N``.

Each module here whose name has no underscore in front is a domain: what is tried. It has one
function,

    def case(random: random.Random) -> None

which makes an input out of nothing but ``random``, gives it to the product and returns if that did
what it should: gave the right answer, or refused in the way that is promised. What it raises is a
finding, AssertionError above all. Cases run in a child process, each with an empty folder as its
working directory, so that a crash and a hang are findings too, and nothing is left behind.

To add a domain, add such a module. ``python -m tests.fuzz --domain NAME --only N --seed N`` runs
one case once more; the report of a finding names it.
"""
