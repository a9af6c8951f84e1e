"""What every room needs: settings, errors, files, names, processes, and the networks' building blocks."""

from common.hub_client import bound_the_client

bound_the_client()
