"""Bad calls of the public API: each ends in an exception of the right type that names what was received."""
