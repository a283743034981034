"""Reads the images, recordings and documents that requests refer to: what may be read, fetching, decoding."""
