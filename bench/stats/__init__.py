"""Statistics of the suite: pure functions on arrays.  The unit of inference is the person."""
