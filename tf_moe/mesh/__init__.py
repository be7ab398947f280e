"""Tensors split over the devices of a mesh: where they are, how they move. Imports nothing else of the package."""
