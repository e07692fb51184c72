"""Parts of `Task`: what few tasks say, with defaults for all others."""
