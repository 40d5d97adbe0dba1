"""Models: configuration, families, file formats, sources."""
