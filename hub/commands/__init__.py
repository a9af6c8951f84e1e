"""The sub-commands of `python -m hub`: each file has a COMMAND."""
