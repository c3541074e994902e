"""Published tree shapes, as data: number of children of every inner node, by path of ranks."""

from __future__ import annotations


def _paths(children: dict[str, int]) -> list[list[int]]:
    return [
        [*map(int, parent.split()), rank]
        for parent, count in children.items()
        for rank in range(count)
    ]


#: Medusa's and Hydra's default, ``mc_sim_7b_63``: 63 nodes, depth 4.
MEDUSA = _paths(
    {
        "": 10,
        **{"0": 10, "1": 7, "2": 3, "3": 2},
        **{str(rank): 1 for rank in range(4, 10)},
        **{"0 0": 10, "0 1": 3, "0 2": 2, "1 0": 2, "2 0": 1},
        **{f"0 {rank}": 1 for rank in range(3, 8)},
        "0 0 0": 2,
    }
)

#: Token Recycling's "2.2.2": 80 nodes, depth 6.
TOKEN_RECYCLING = _paths(
    {
        "": 8,
        **{"0": 8, "1": 4, "2": 3, "3": 2, "4": 1, "5": 1, "6": 1, "7": 1},
        **{"0 0": 8, "0 1": 3, "0 2": 2, "1 0": 2, "1 1": 1},
        **{f"0 {rank}": 1 for rank in range(3, 8)},
        **{f"{rank} 0": 1 for rank in range(2, 6)},
        **{"0 0 0": 5, "0 0 1": 2, "0 0 2": 1, "0 0 3": 1, "0 0 4": 1},
        **{"0 1 0": 1, "0 2 0": 1, "1 0 0": 1, "2 0 0": 1, "3 0 0": 1},
        **{"0 0 0 0": 3, "0 0 0 1": 1, "0 0 0 2": 1, "0 0 1 0": 1, "0 1 0 0": 1, "1 0 0 0": 1},
        **{"0 0 0 0 0": 2, "0 0 0 1 0": 1},
    }
)
