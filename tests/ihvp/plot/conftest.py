import pytest
from matplotlib.figure import Figure


@pytest.fixture
def ax():
    return Figure(layout="constrained").subplots()


@pytest.fixture
def legend(ax):
    """What the legend of ``ax`` says, when asked."""
    return lambda: [text.get_text() for text in ax.get_legend().get_texts()]
