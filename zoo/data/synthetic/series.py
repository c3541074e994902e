"""Made multivariate series, some variates of which follow another one."""

from __future__ import annotations

import numpy as np
import pandas as pd

#: Hours after which the followers repeat.
DELAY = 20


def made_series(hours: int, seed: int) -> pd.DataFrame:
    """Seven variates under ETT's names, four of which only a look at another one forecasts well.

    HUFL, HULL and MUFL are oscillations of their own that noise keeps going. MULL, LUFL, LULL and
    OT repeat HUFL 20 hours later, with some noise.
    """
    random = np.random.default_rng(seed)
    length = hours + DELAY
    noise = random.normal(size=(3, length))
    own = np.zeros((3, length))
    for t in range(2, length):
        own[:, t] = 1.5 * own[:, t - 1] - 0.75 * own[:, t - 2] + noise[:, t]
    own /= own.std(axis=1, keepdims=True)
    later = np.roll(own[0], DELAY)
    columns = dict(zip(("HUFL", "HULL", "MUFL"), own, strict=True))
    for name in ("MULL", "LUFL", "LULL", "OT"):
        columns[name] = later + 0.1 * random.normal(size=length)
    table = pd.DataFrame(columns)[DELAY:]
    scales = [(8.0, 3.0), (2.0, 1.5), (4.0, 2.0), (1.0, 1.0), (3.0, 1.0), (1.0, 0.5), (15.0, 8.0)]
    for name, (mean, scale) in zip(table.columns, scales, strict=True):
        table[name] = mean + scale * table[name]
    return table.reset_index(drop=True)
