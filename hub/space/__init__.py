"""A page that draws a prompt with a base and with the base's adapter, here or as a Space on the Hub."""
