"""An example of a package that plugs into deidbench; see its README."""
