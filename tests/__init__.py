"""The tests. A package, so that no sloppy distribution's own `tests` can stand before it."""
