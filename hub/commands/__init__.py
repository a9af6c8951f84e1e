"""The sub-commands of `python -m hub`: each file has `add_command`, which adds the command's arguments and
says what runs it."""
