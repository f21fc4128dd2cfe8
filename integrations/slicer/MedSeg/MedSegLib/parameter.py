"""What the user chooses, and how medseg is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

DEVICES = ("auto", "cpu", "cuda", "mps")
BACKENDS = ("auto", "torch", "compiled", "openvino")
PRECISIONS = ("", "float32", "float16", "bfloat16", "int8")


@dataclass(frozen=True)
class Parameter:
    """Options of a segmentation; what is empty is left to medseg."""

    model: str = "hippocampus-t1"
    device: str = "auto"
    backend: str = "auto"
    precision: str = ""
    threads: int = 0
    overlap: str = ""
    memory: str = ""
    mirror: bool = False
    strict: bool = False

    def arguments(self) -> list[str]:
        """Return the options of `medseg predict`."""
        words = ["--model", self.model, "--device", self.device, "--backend", self.backend]
        for name in ("precision", "overlap", "memory"):
            value = getattr(self, name).strip()
            words += [f"--{name}", value] if value else []
        words += ["--threads", str(self.threads)] if self.threads > 0 else []
        words += ["--mirror"] if self.mirror else []
        words += ["--strict"] if self.strict else []
        return words

    def as_settings(self) -> dict[str, str]:
        """Return all values as text, to be kept."""
        return {name: str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_settings(cls, kept: Mapping[str, str]) -> Parameter:
        """Return what was kept; defaults for what is missing or is no such value."""
        parameter = cls()
        for field in fields(cls):
            text, default = kept.get(field.name), getattr(parameter, field.name)
            if not isinstance(text, str):
                continue
            if isinstance(default, bool):
                value = text == "True"
            elif isinstance(default, int):
                value = int(text) if text.isascii() and text.isdigit() else default
            else:
                value = text
            parameter = replace(parameter, **{field.name: value})
        return parameter
