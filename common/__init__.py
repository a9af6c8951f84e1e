"""What every room needs: settings, errors, files, names, processes, and the networks' building blocks."""
