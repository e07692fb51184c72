"""The pass protocol, the pipeline language, the registry and the target protocol."""
