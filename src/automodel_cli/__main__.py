"""``python -m automodel_cli`` is ``automodel``; launched workers execute this file."""

from automodel_cli.cli.app import main

if __name__ == "__main__":
    main()
