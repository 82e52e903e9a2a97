"""Rankings as a page to look at: one HTML file that loads nothing from elsewhere."""

from ihvp.report.form import count
from ihvp.report.page import check_place, page

__all__ = ["check_place", "count", "page"]
