"""What is checked of a loss before results rest on it: each premise once, where it is needed first."""

from __future__ import annotations

from ihvp.verification.premises import Premises
from ihvp.verification.report import Check, Report
from ihvp.verification.subject import Subject

__all__ = ["Check", "Premises", "Report", "Subject"]
