"""What the linter says of a published folder."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One fault of a folder."""

    severity: Literal["error", "warning"]
    """an error refuses the folder; with a warning it is usable, but not everywhere"""
    what: str
    effect: str
    """what would go wrong, and in which engine"""
    mend: str

    def __str__(self) -> str:
        return f"{self.what} ({self.effect}): {self.mend}"


class Findings(list[Finding]):
    def error(self, what: str, effect: str, mend: str) -> None:
        self.append(Finding("error", what, effect, mend))

    def warning(self, what: str, effect: str, mend: str) -> None:
        self.append(Finding("warning", what, effect, mend))

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self if finding.severity == "warning"]
