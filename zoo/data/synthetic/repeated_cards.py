"""Two of POPGym's games (Morad et al. 2023), of which the policy sees too little at once: cards are
shown one after the other, and one that was shown before is asked for.

As S5-RL's authors wrote them anew (luchris429/popjaxrl). An observation is the suit, one of four;
so is the action. A right answer gives a reward and a wrong one takes it; all of an episode add up
to about 1.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from zoo.errors import ZooError

SUITS, DECK = 4, 52


class RepeatPrevious(gymnasium.Env[np.ndarray, np.int64]):
    """Name the card of ``k`` steps ago; before there is one, nothing is won or lost.

    Args:
        decks: of 52 cards, all of which an episode shows.
        k: steps back.

    Raises:
        ZooError: there is no such card.
    """

    def __init__(self, decks: int = 1, k: int = 4) -> None:
        if decks < 1 or not 0 < k < decks * DECK:
            raise ZooError(f"expected 1 deck or more and k of 1 to 52 decks - 1, got {decks}, {k}")
        self.cards, self.k, self.place = np.arange(decks * DECK) % SUITS, k, 0
        self.observation_space = gymnasium.spaces.Box(0, 1, (SUITS,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(SUITS)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Shuffle, and show the first card."""
        super().reset(seed=seed)
        self.cards, self.place = self.np_random.permutation(np.sort(self.cards)), 0
        return self._shown(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Answer to the card that is shown now."""
        reward, asked = 0.0, self._asked()
        if asked is not None:
            reward = (1.0 if self.cards[asked] == action else -1.0) / (len(self.cards) - self._free)
        self.place += 1
        return self._shown(), reward, self.place == len(self.cards), False, {}

    @property
    def _free(self) -> int:
        """Steps that are not counted."""
        return self.k

    def _asked(self) -> int | None:
        """Which card must be named now."""
        return self.place - self.k if self.place >= self.k else None

    def _shown(self) -> np.ndarray:
        card = self.cards[min(self.place, len(self.cards) - 1)]
        return np.eye(SUITS, dtype=np.float32)[card]


class RepeatFirst(RepeatPrevious):
    """Name the first card, at every step.

    Args:
        decks: of 52 cards, all of which an episode shows.
    """

    def __init__(self, decks: int = 1) -> None:
        super().__init__(decks, k=1)

    def _asked(self) -> int:
        return 0


#: POPGym's three levels of each.
GAMES: dict[str, tuple[type[RepeatPrevious], dict[str, int]]] = {
    "RepeatPreviousEasy": (RepeatPrevious, {"decks": 1, "k": 4}),
    "RepeatPreviousMedium": (RepeatPrevious, {"decks": 2, "k": 32}),
    "RepeatPreviousHard": (RepeatPrevious, {"decks": 3, "k": 64}),
    "RepeatFirstEasy": (RepeatFirst, {"decks": 1}),
    "RepeatFirstMedium": (RepeatFirst, {"decks": 8}),
    "RepeatFirstHard": (RepeatFirst, {"decks": 16}),
}
