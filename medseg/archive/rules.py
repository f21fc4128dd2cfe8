"""Which series are segmented, and by which model: rules in a TOML file, the first that fits wins."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from medseg.errors import UsageError

_EXAMPLE = '[[rule]] with modality = "CT" and model = "NAME"; see docs/batch.md'


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _upper(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text.upper() for text in value)


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("the first number is the least, the second the most")
    return value


Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]


@dataclass(frozen=True)
class Series:
    """What rules look at; None where it is known only when the scan is read.

    Parameters
    ----------
    modality, description, name : str
        DICOM's Modality ('' where unknown), the series description, and the path in the archive.
    slices : int, optional
        How many.
    spacing_mm : tuple of three floats, optional
        Between columns, rows and slices.
    """

    modality: str
    description: str
    name: str = ""
    slices: int | None = None
    spacing_mm: tuple[float, float, float] | None = None


class Rule(BaseModel):
    """What a series must be like, and what is done with it; what is left out holds for every series."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: Annotated[Texts, AfterValidator(_upper)] = ()
    description: Texts = ()  # shell patterns, in any case; one of them must fit
    exclude: Texts = ()  # none of them may
    path: Texts = ()  # of files: patterns of the path in the archive
    slices: Annotated[tuple[int, int], AfterValidator(_ordered)] | None = None
    spacing_mm: Annotated[tuple[float, float], AfterValidator(_ordered)] | None = None  # of slices: least and most
    per_study: Literal["all", "thinnest", "most slices"] = "all"
    model: str = ""
    formats: Texts = ()
    skip: bool = False  # what fits is passed over

    def fits(self, series: Series) -> bool:
        """Return whether a series is meant, as far as that is known before it is read."""
        return (
            (not self.modality or series.modality in self.modality)
            and (not self.description or _any(self.description, series.description))
            and not _any(self.exclude, series.description)
            and (not self.path or _any(self.path, series.name))
            and not self.objection(series)
            and not (self.skip and self._undecided(series))
        )

    def _undecided(self, series: Series) -> bool:
        """Return whether a limit can be held against the scan only once it is read."""
        return bool((self.slices and series.slices is None) or (self.spacing_mm and series.spacing_mm is None))

    def objection(self, series: Series) -> str:
        """Return in a sentence why slices or spacing are not as they should be; empty where they are, or unknown."""
        if self.slices and series.slices is not None and not self.slices[0] <= series.slices <= self.slices[1]:
            return f"it has {series.slices} slices, the rule wants {self.slices[0]} to {self.slices[1]}"
        if self.spacing_mm and series.spacing_mm is not None:
            least, most = self.spacing_mm
            if not least <= series.spacing_mm[2] <= most:
                return f"its slices lie {series.spacing_mm[2]:.3g} mm apart, the rule wants {least:g} to {most:g}"
        return ""


class Rules(BaseModel):
    """Rules in the order in which they are tried."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: tuple[Rule, ...] = Field(min_length=1)

    def choose(self, series: Series) -> Rule | None:
        """Return the first rule that fits, or None; the rule may be to skip."""
        return next((rule for rule in self.rule if rule.fits(series)), None)


def read_rules(path: Path | None, *, model: str = "", formats: Sequence[str] = ()) -> Rules:
    """Return the rules of a file; `model` and `formats` stand where a rule names none.

    Parameters
    ----------
    path : Path, optional
        A TOML file; without one, every series is meant.
    model : str
        By name or file.
    formats : sequence of str
        Of label maps and DICOM results.

    Raises
    ------
    UsageError
        If the file cannot be read, holds an unknown key or a wrong value, or no model is named.
    """
    try:
        rules = Rules.model_validate(tomllib.loads(path.read_text("utf-8"))) if path else Rules(rule=(Rule(),))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", hint=f"give a file with {_EXAMPLE}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not TOML: {error}", hint=f"give a file with {_EXAMPLE}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part + 1) if isinstance(part, int) else part for part in first["loc"])
        raise UsageError(f"{path}: {where}: {first['msg']}", hint=f"give a file with {_EXAMPLE}") from None
    named = tuple(
        rule.model_copy(update={"model": rule.model or model, "formats": rule.formats or tuple(formats)})
        for rule in rules.rule
    )
    if any(not rule.model and not rule.skip for rule in named):
        raise UsageError("no model was named", hint="give --model NAME, or model = in every rule")
    return Rules(rule=named)


def _any(patterns: Sequence[str], text: str) -> bool:
    return any(fnmatchcase(text.casefold(), pattern.casefold()) for pattern in patterns)
