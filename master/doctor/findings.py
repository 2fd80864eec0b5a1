"""What the doctor has found."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self


class Verdict(StrEnum):
    """What a finding means to whoever wants to run a service."""

    OK = "ok"
    MISSING = "missing"  # nothing renders in a sandbox without it
    OPTIONAL = "optional"  # not there, and something would be better with it


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `found`: what there is, in words; `hint`: how to get it, if it is not ok."""

    name: str
    ok: bool
    required: bool
    found: str
    hint: str = ""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        """From an object of JSON with all these fields. Raises TypeError, LookupError, ValueError."""
        values = {name: fields[name] for name in ("name", "ok", "required", "found", "hint")}
        for name, value in values.items():
            if not isinstance(value, bool if name in ("ok", "required") else str):
                raise TypeError(f"{name} is a {type(value).__name__}")
        return cls(**values)

    @property
    def verdict(self) -> Verdict:
        if self.ok:
            return Verdict.OK
        return Verdict.MISSING if self.required else Verdict.OPTIONAL


def all_required(findings: list[Finding]) -> bool:
    """Whether a service can do its work here."""
    return all(finding.verdict is not Verdict.MISSING for finding in findings)
