"""What a user asks of a plan, and what was chosen, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.errors import UsageError

ASKED = "asked for"


@dataclass(frozen=True)
class Wishes:
    """What the user decides; None leaves a choice to the planning.

    Parameters
    ----------
    axes : int, optional
        2 or 3.
    network : str, optional
        A name in `medseg.networks.ARCHITECTURES`.
    spacing : three floats, optional
        mm, in the order of the plan's axes.
    patch : ints, optional
        Voxels along the plan's axes; for 2 axes two numbers, or three with the last 1.
    batch : int, optional
        Patches in each step.
    widths : ints, optional
        Channels of each stage of a U-Net, from the finest.
    """

    axes: int | None = None
    network: str | None = None
    spacing: tuple[float, ...] | None = None
    patch: tuple[int, ...] | None = None
    batch: int | None = None
    widths: tuple[int, ...] | None = None

    def check(self) -> None:
        """Refuse wishes that no data set can meet.

        Raises
        ------
        UsageError
            With the option that does not fit.
        """
        if self.axes not in (None, 2, 3):
            raise UsageError(f"--axes {self.axes}: a network has 2 or 3 axes", hint="give --axes 2 or --axes 3")
        if self.spacing is not None and (len(self.spacing) != 3 or not all(0 < mm < 1e6 for mm in self.spacing)):
            raise UsageError(f"--spacing {times(self.spacing)}: not three sizes in mm", hint="give such as 1x1x2.5")
        if self.patch is not None and not all(0 < n < 1 << 16 for n in self.patch):
            raise UsageError(f"--patch {times(self.patch)}: not sizes in voxels", hint="give such as 96x96x64")
        if self.widths is not None and not all(0 < n < 1 << 16 for n in self.widths):
            raise UsageError(f"--widths {times(self.widths)}: not numbers of channels", hint="give such as 32x64x128")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"--batch {self.batch}: not a number of patches", hint="give at least 1")


@dataclass(frozen=True)
class Choice:
    """One thing that a plan decides: what, to which value, and why."""

    what: str
    value: str
    why: str


def times(numbers: tuple[float, ...]) -> str:
    """Return numbers as a size is written.

    >>> times((0.8, 0.8, 3))
    '0.8 x 0.8 x 3'
    """
    return " x ".join(f"{number:g}" for number in numbers)


def counted(number: int, noun: str) -> str:
    """Return a number and its noun.

    >>> counted(1, "case"), counted(2, "case")
    ('1 case', '2 cases')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
