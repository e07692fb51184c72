"""A run: request, plan, choice of the pipeline, packaging."""
