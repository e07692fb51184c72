"""The main job: request, plan, search, packaging."""
