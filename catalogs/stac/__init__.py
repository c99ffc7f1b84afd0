"""stac."""
