"""What is checked of a loss before results rest on it: each premise once, where it is needed first."""

from ihvp.verification.additivity import adds_up_on_sample
from ihvp.verification.premises import Check, Premises, Report
from ihvp.verification.subject import Subject

__all__ = ["Check", "Premises", "Report", "Subject", "adds_up_on_sample"]
