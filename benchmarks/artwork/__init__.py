"""Our default beside published methods on a world of artwork."""
