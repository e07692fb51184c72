"""Parts of `Task`: methods that few tasks override, with defaults for all others."""
