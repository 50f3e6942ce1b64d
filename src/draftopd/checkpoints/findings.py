"""What the checks of a published folder found."""

from dataclasses import dataclass
from typing import Literal

from draftopd.errors import one_line


@dataclass(frozen=True)
class Finding:
    """One fault of a folder."""

    severity: Literal["error", "warning"]
    """an error refuses the folder; with a warning it is usable, but not everywhere"""
    what: str
    effect: str
    """what would go wrong, and in which engine"""
    fix: str

    def __str__(self) -> str:
        return f"{self.what} ({self.effect}): {self.fix}"


class Findings(list[Finding]):
    def error(self, what: str, effect: str, fix: str) -> None:
        self.append(Finding("error", one_line(what), effect, fix))

    def warning(self, what: str, effect: str, fix: str) -> None:
        self.append(Finding("warning", one_line(what), effect, fix))

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self if finding.severity == "warning"]
