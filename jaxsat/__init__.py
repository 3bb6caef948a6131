"""jaxsat."""
