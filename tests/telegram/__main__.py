"""Runs the stand-in for Telegram: python3 tests/telegram --help."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:1] = [str(FOLDER.parents[1]), str(FOLDER.parent)]

from telegram.sandbox import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
