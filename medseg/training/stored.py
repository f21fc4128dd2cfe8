"""An array in a file of which only what is asked for is read, and which holds no file open in between."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Stored:
    """A `.npy` file, memory-mapped for each access: thousands of cases would else hold thousands of files open.

    Parameters
    ----------
    path : Path
        Of the file; not one of Python objects.
    shape : tuple of int
        Of the array.
    dtype : numpy.dtype
        Of its elements.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, path: Path) -> Stored:
        """Return the array in a file.

        Raises
        ------
        OSError, ValueError
            If there is none.
        """
        array = np.lib.format.open_memmap(path, mode="r")
        return cls(path, array.shape, array.dtype)

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        """Return a part of the array, in memory."""
        return np.array(np.lib.format.open_memmap(self.path, mode="r")[index])

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: npt.DTypeLike | None = None, *, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return all of the array, in memory."""
        return self[...].astype(dtype or self.dtype, copy=False)
