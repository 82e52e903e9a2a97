"""``python -m ihvp``: the command line."""

from ihvp.cli import app

if __name__ == "__main__":
    app(prog_name="ihvp")
