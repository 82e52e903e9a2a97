"""Stands unseen at the top of each tutorial: ``show`` puts a figure on the page."""

import base64
import html
import io


def show(figure, description):
    """Prints a figure as HTML, with a description for those who cannot see it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="svg")
    content = base64.b64encode(picture.getvalue()).decode()
    print(f'<img alt="{html.escape(description)}" src="data:image/svg+xml;base64,{content}">')
