"""Our default beside published methods on the bundled canvas."""
